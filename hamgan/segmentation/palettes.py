"""Colours of classes: the published palettes, and distinct colours for any number of classes."""

import colorsys

import numpy as np
from numpy.typing import NDArray

# ADE20K's 150 colours, three bytes each, as its benchmark's toolkit paints them.
_ADE20K = (
    "787878b4787806e6e650323204c8037878508c8c8ccc05ffe6e6e604fa07e005ffebff0796053d78784608ff33ff06528fff8cccff04"
    "ff3307cc46030066c83de6faff06330b66ffff0747ff09e00907e6dcdcdcff095c7009ff08ffd607ffe0ffb8060aff47ff290a07ffff"
    "e0ff086608ffff3d06ffc207ff7a0800ff14ff0829ff05990633ffeb0cffa0961400a3ff8c8c8cfa0a0f14ff001fff00ff1f00ffe000"
    "99ff000000ffff470000ebff00adff1f00ff0bc8c8ff520000fff5003dff00ff7000ff85ff0000ffa300ff6600c2ff00008fff33ff00"
    "0052ff00ff2900ffad0a00ffadff0000ff99ff5c00ff00ffff00f5ff0066ffad00ff0014ffb8b8001fff00ff3d0047ffff00cc00ffc2"
    "00ff52000aff0070ff3300ff00c2ff007aff00ffa3ff990000ff0aff70008fff005200ffa3ff00ffeb0008b8aa8500ff00ff5cb800ff"
    "ff001f00b8ff00d6ffff00705cff0000e0ff70e0ff46b8a0a300ff9900ff47ff00ff00a3ffcc00ff008f00ffeb85ff00ff00ebf500ff"
    "ff007afff5000abed4d6ff0000ccff1400ffffff000099ff0029ff00ffcc2900ff29ff00ad00ff00f5ff4700ff7a00ff00ffb8005cff"
    "b8ff000085ffffd60019c2c266ff005c00ff"
)


def ade20k_palette() -> NDArray[np.uint8]:
    """Return ADE20K's colours, (150, 3)."""
    return np.frombuffer(bytes.fromhex(_ADE20K), np.uint8).reshape(-1, 3)


def voc_palette(num_classes: int) -> NDArray[np.uint8]:
    """Return PASCAL VOC's colours, (num_classes, 3): the bits of a class's number, dealt to red, green and blue in turn."""
    colors = np.zeros((num_classes, 3), np.uint8)
    for label in range(num_classes):
        for place in range(8):
            for channel in range(3):
                colors[label, channel] |= (label >> (3 * place + channel) & 1) << (7 - place)
    return colors


def distinct_palette(num_classes: int) -> NDArray[np.uint8]:
    """Return colours that neighbours in number do not share, (num_classes, 3); class 0 is dark, as backgrounds are."""
    rows = [(40, 40, 40)]
    for label in range(1, num_classes):
        hue = (label * 0.618034) % 1  # the golden ratio keeps any number of hues apart
        rgb = colorsys.hsv_to_rgb(hue, 0.85 if label % 2 else 0.55, 1.0 if label % 3 else 0.75)
        rows.append(tuple(round(255 * part) for part in rgb))  # type: ignore[arg-type]
    return np.array(rows[:num_classes], np.uint8)

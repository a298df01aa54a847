"""Label maps as pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hamgan.checkpoint import write_atomically
from hamgan.segmentation.dataset import IGNORED

GAP = 4
"""Pixels between pictures on a sheet, white."""
SHEET_WIDTH = 320
"""Width of one picture on a sheet, pixels."""


def paint(labels: NDArray[np.uint8], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give each pixel of (H, W) its class's colour, (H, W, 3); ignored ones are white."""
    colors = np.full((IGNORED + 1, 3), 255, np.uint8)
    colors[: len(palette)] = palette
    return colors[labels]


def overlay(image: NDArray[np.uint8], labels: NDArray[np.uint8], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay the classes' colours half over an image (H, W, 3), and their outlines in black."""
    mixed = (image.astype(np.uint16) + paint(labels, palette)) // 2
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    mixed[edge] = 0
    return mixed.astype(np.uint8)


def sheet(rows: Sequence[Sequence[NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """Lay pictures (H, W, 3) of any size out in rows, all scaled to one width.

    Small ones grow by whole factors, so that their pixels stay sharp.
    """
    bands = []
    for row in rows:
        pictures = [_to_width(picture) for picture in row]
        height = max(picture.shape[0] for picture in pictures)
        parts: list[NDArray[np.uint8]] = []
        for picture in pictures:
            below = np.full((height - picture.shape[0], picture.shape[1], 3), 255, np.uint8)
            parts += [np.concatenate([picture, below]), np.full((height, GAP, 3), 255, np.uint8)]
        band = np.concatenate(parts[:-1], 1)
        bands += [band, np.full((GAP, band.shape[1], 3), 255, np.uint8)]
    return np.concatenate(bands[:-1])


def _to_width(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    factor = SHEET_WIDTH // width
    if factor >= 1:
        grown = picture.repeat(factor, 0).repeat(factor, 1)
        return np.pad(grown, ((0, 0), (0, SHEET_WIDTH - grown.shape[1]), (0, 0)), constant_values=255)
    size = (SHEET_WIDTH, max(round(height * SHEET_WIDTH / width), 1))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def save_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write (H, W, 3) as PNG, atomically."""
    write_atomically(path, lambda file: Image.fromarray(picture).save(file, format="PNG"))


def save_mask(path: Path, labels: NDArray[np.uint8], palette: NDArray[np.uint8]) -> None:
    """Write classes (H, W) as a PNG of palette indices with the classes' colours, atomically."""
    colors = np.full((IGNORED + 1, 3), 255, np.uint8)
    colors[: len(palette)] = palette
    picture = Image.fromarray(labels, mode="P")
    picture.putpalette(colors.tobytes())
    write_atomically(path, lambda file: picture.save(file, format="PNG"))

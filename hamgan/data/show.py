"""A contact sheet: what the images and labels of a training file look like."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hamgan.data.hdf5 import TrainingFile

_TILE = 96  # smaller images are enlarged to about this many pixels
_CAPTION = 14
_GAP = 4


def contact_sheet(
    path: str | Path,
    out_png: str | Path,
    *,
    rows: int = 8,
    columns: int = 8,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> Path:
    """Draw images with their class names under them, spread evenly over the classes.

    Args:
        path: A training file.
        out_png: The picture to write.
        rows: Rows of images.
        columns: Images per row.
        classes: Names or indices of the classes to show; None for all.
        seed: Which images of each class.

    Returns:
        The picture's path.

    Raises:
        ValueError: If the file is not a training file, a class is unknown or a count is out of range.
        OSError: If the picture cannot be written.
    """
    if not (1 <= rows <= 100 and 1 <= columns <= 100):
        raise ValueError(f"rows {rows} and columns {columns} must be 1..100")
    with TrainingFile(path) as file:
        indices = _choose(file, rows * columns, classes, seed)
        tiles = file.read(indices)
        names = [file.class_names[label] for label in file.labels[indices]]
    scale = max(1, _TILE // tiles.shape[1])
    side = tiles.shape[1] * scale
    sheet = Image.new("RGB", (columns * (side + _GAP) + _GAP, rows * (side + _CAPTION + _GAP) + _GAP), (236, 236, 236))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for i, (tile, name) in enumerate(zip(tiles, names)):
        x = _GAP + i % columns * (side + _GAP)
        y = _GAP + i // columns * (side + _CAPTION + _GAP)
        sheet.paste(Image.fromarray(tile).resize((side, side), Image.Resampling.NEAREST), (x, y))
        draw.text((x, y + side), _fit(draw, name, font, side), fill=(20, 20, 20), font=font)
    out_png = Path(out_png).expanduser()
    sheet.save(out_png, "PNG")
    print(f"{out_png}: {len(indices)} images of {len(set(names))} classes")
    return out_png


def _choose(file: TrainingFile, count: int, classes: Sequence[str] | None, seed: int) -> NDArray[np.int64]:
    """Choose images: as many of each class as the others, sorted by class."""
    wanted = [_class_index(file, name) for name in classes] if classes else np.unique(file.labels).tolist()
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for place, label in enumerate(wanted):
        share = count * (place + 1) // len(wanted) - count * place // len(wanted)
        members = np.flatnonzero(file.labels == label)
        chosen += rng.permutation(members)[:share].tolist()
    if not chosen:
        raise ValueError(f"{file.path}: no image of the classes asked for")
    return np.asarray(chosen, np.int64)


def _class_index(file: TrainingFile, name: str) -> int:
    if name in file.class_names:
        return file.class_names.index(name)
    if str(name).isdecimal() and int(name) < file.num_classes:
        return int(name)
    raise ValueError(f"{file.path}: no class {name!r} among its {file.num_classes}, such as {file.class_names[0]!r}")


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Shorten a text to a width in pixels."""
    text = text.encode("latin1", "replace").decode("latin1")  # all that the built-in font can draw
    if draw.textlength(text, font) <= width:
        return text
    while len(text) > 1 and draw.textlength(text + "...", font) > width:
        text = text[:-1]
    return text + "..."

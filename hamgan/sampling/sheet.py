"""A labelled sheet of images: a title, rows with names, columns with names, single images marked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hamgan.sampling.grid import as_picture, enlarge

INK, SOFT_INK, PAPER, MARK = (24, 24, 27), (113, 113, 122), (255, 255, 255), (225, 29, 72)
SIZE, TITLE_SIZE = 13, 16
"""Of the text, pixels."""
MARGIN, GAP = 12, 3
"""Around a sheet and between its images, pixels."""
TILE = 64
"""Smaller images are enlarged, by a whole number, to about this side, pixels."""
LONGEST_LABEL = 180
"""Of a row, pixels; longer ones are cut."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a sheet."""

    images: Tensor
    """uint8 (C, 3, H, W)."""
    label: str = ""
    """Written to the left."""
    marked: frozenset[int] = field(default_factory=frozenset)
    """Columns whose image has a frame."""


def default_zoom(resolution: int) -> int:
    """Return the enlargement that brings images to about TILE pixels."""
    return max(1, round(TILE / resolution))


def draw_sheet(
    rows: Sequence[Row], *, columns: Mapping[int, str] | None = None, title: str = "", zoom: int | None = None
) -> Image.Image:
    """Draw a sheet.

    Args:
        rows: At least one; of images of one size; a shorter row leaves its end white.
        columns: Names above columns, by number.
        title: Above all.
        zoom: Whole-number enlargement of the images; None: to about TILE pixels.

    Returns:
        The picture, as wide as it needs to be.
    """
    font, title_font = ImageFont.load_default(SIZE), ImageFont.load_default(TITLE_SIZE)
    height, width = rows[0].images.shape[2:]
    zoom = zoom or default_zoom(max(height, width))
    cell_w, cell_h = width * zoom + GAP, height * zoom + GAP
    num_columns = max(len(row.images) for row in rows)
    labels = [_cut(row.label, font, LONGEST_LABEL) for row in rows]
    left = MARGIN + (round(max(map(font.getlength, labels))) + 10 if any(labels) else 0)
    top = MARGIN + (TITLE_SIZE + 12 if title else 0) + (SIZE + 8 if columns else 0)
    size = (left + num_columns * cell_w - GAP + MARGIN, top + len(rows) * cell_h - GAP + MARGIN)
    named = sorted(columns or {})
    if columns and named:  # the last name may reach beyond its column
        size = (
            max(size[0], left + named[-1] * cell_w + round(font.getlength(_plain(columns[named[-1]]))) + MARGIN),
            size[1],
        )
    size = (max(size[0], round(title_font.getlength(_plain(title))) + 2 * MARGIN), size[1])
    picture = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(picture)
    if title:
        pen.text((MARGIN, MARGIN), _plain(title), fill=INK, font=title_font)
    for place, column in enumerate(named):
        room = (named[place + 1] - column) * cell_w - 6 if place + 1 < len(named) else float(size[0])
        x = left + column * cell_w
        pen.text((x, top - SIZE - 6), _cut((columns or {})[column], font, room), fill=SOFT_INK, font=font)
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = top + number * cell_h
        pen.text((left - 10, y + (cell_h - GAP) / 2), label, fill=INK, font=font, anchor="rm")
        for column, image in enumerate(enlarge(row.images, zoom)):
            x = left + column * cell_w
            picture.paste(as_picture(image), (x, y))
            if column in row.marked:
                pen.rectangle([x - 2, y - 2, x + cell_w - GAP + 1, y + cell_h - GAP + 1], outline=MARK, width=2)
    return picture


def side_by_side(pictures: Sequence[Image.Image], widest: int = 2000) -> Image.Image:
    """Put pictures next to each other, in as many lines as keep within `widest` pixels (a single one may exceed it)."""
    lines: list[list[Image.Image]] = [[]]
    for picture in pictures:
        if lines[-1] and sum(other.width for other in lines[-1]) + picture.width > widest:
            lines.append([])
        lines[-1].append(picture)
    size = (
        max(sum(picture.width for picture in line) for line in lines),
        sum(max(picture.height for picture in line) for line in lines),
    )
    joined = Image.new("RGB", size, PAPER)
    y = 0
    for line in lines:
        x = 0
        for picture in line:
            joined.paste(picture, (x, y))
            x += picture.width
        y += max(picture.height for picture in line)
    return joined


def _plain(text: str) -> str:
    """Replace what the built-in font cannot draw."""
    return text.encode("latin1", "replace").decode("latin1")


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    """Shorten a text to a width in pixels."""
    text = _plain(text)
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "...") > room:
        text = text[:-1]
    return text + "..." if text else ""

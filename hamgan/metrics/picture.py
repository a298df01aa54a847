"""The picture beside a card: best and worst classes, nearest training images, and the distance against the count."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hamgan.checkpoint import write_atomically
from hamgan.metrics.card import Card, ClassRow
from hamgan.metrics.sources import ImageSource

_MARGIN, _LINE, _TITLE = 16, 16, 26  # pixels
_WIDTH = 1000  # pixels
_TILE = 96  # largest side of a shown image, pixels


def draw_picture(
    card: Card,
    path: Path,
    images: ImageSource,
    *,
    training: ImageSource | None = None,
    num_classes: int = 4,
    num_pairs: int = 8,
) -> None:
    """Write a PNG that shows what the numbers mean.

    Args:
        card: Names the classes, the image numbers and the curve.
        path: Where to, in one step.
        images: The evaluated images, by number.
        training: The images whose features memorisation used, by number; None leaves the neighbours out.
        num_classes: Classes shown, worst and best each.
        num_pairs: Nearest pairs shown.

    Raises:
        ValueError: If an image cannot be read.
        OSError: If the file cannot be written.
    """
    parts = [_title(_headline(card))]
    if card.classes:
        worst = card.classes[:num_classes]
        best = [row for row in card.classes[-num_classes:] if row not in worst]
        for title, rows in (("worst classes", worst), ("best classes", best[::-1])):
            if rows:
                parts.append(_title(f"{title} (by accuracy, then by Frechet distance)"))
                parts += [_class_row(row, images) for row in rows]
    if training is not None and card.closest:
        parts.append(_title("nearest pairs: generated above, training image below, distance in feature space"))
        parts.append(_pairs(card.closest[:num_pairs], images, training))
    if card.curve:
        parts.append(
            _title("Frechet distance against the number of generated images; dashed: extrapolated to infinity")
        )
        parts.append(_curve(card.curve["sizes"], card.curve["values"]))
    height = sum(part.height for part in parts) + 2 * _MARGIN
    canvas = Image.new("RGB", (_WIDTH, height), "white")
    top = _MARGIN
    for part in parts:
        canvas.paste(part, (_MARGIN, top))
        top += part.height
    content = io.BytesIO()
    canvas.save(content, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(content.getvalue()))


def _headline(card: Card) -> str:
    shown = list(card.numbers.items())[:3]
    return "   ".join(f"{name} = {number.value:.5g}" for name, number in shown)


def _blank(height: int) -> Image.Image:
    return Image.new("RGB", (_WIDTH - 2 * _MARGIN, height), "white")


def _write(part: Image.Image, place: tuple[float, float], text: str, size: int = 12, anchor: str = "la") -> None:
    font = ImageFont.load_default(size)
    ImageDraw.Draw(part).text(place, text, fill="black", font=font, anchor=anchor)


def _title(text: str) -> Image.Image:
    part = _blank(_TITLE)
    _write(part, (0, 6), text, 14)
    return part


def _tile(images: ImageSource, number: int) -> Image.Image:
    pixels = images(np.array([number])).images[0].permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    # Whole-number enlargement keeps the pixels visible as they are.
    scale = _TILE // max(picture.size)
    if scale >= 1:
        return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    picture.thumbnail((_TILE, _TILE), Image.Resampling.LANCZOS)
    return picture


def _class_row(row: ClassRow, images: ImageSource) -> Image.Image:
    part = _blank(_TILE + 4)
    _write(part, (0, 4), row.name[:26])
    if row.accuracy is not None:
        _write(part, (0, 4 + _LINE), f"accuracy {row.accuracy:.3g}")
    if row.frechet is not None:
        _write(part, (0, 4 + 2 * _LINE), f"frechet {row.frechet:.4g}")
    for i, number in enumerate(row.examples[:8]):
        part.paste(_tile(images, number), (180 + i * (_TILE + 2), 0))
    return part


def _pairs(pairs: list[tuple[int, int, float]], images: ImageSource, training: ImageSource) -> Image.Image:
    part = _blank(2 * _TILE + 2 * _LINE)
    for i, (fake, real, distance) in enumerate(pairs):
        left = i * (_TILE + 8)
        part.paste(_tile(images, fake), (left, 0))
        part.paste(_tile(training, real), (left, _TILE + 2))
        _write(part, (left, 2 * _TILE + 6), f"{distance:.4g}")
    return part


def _curve(sizes: list[float], values: list[float]) -> Image.Image:
    part = _blank(300)
    left, right, top, bottom = 70, part.width - 20, 10, 260
    _, limit = np.polyfit(1 / np.array(sizes), values, 1)
    low, high = min([*values, float(limit)]), max(values)
    low -= (high - low) / 20  # else the limit would lie on the axis
    span = (high - low) or 1.0

    def place(size: float, value: float) -> tuple[float, float]:
        x = left + (right - left) * size / sizes[-1]
        return x, bottom - (bottom - top) * (value - low) / span

    pen = ImageDraw.Draw(part)
    pen.line([(left, top), (left, bottom), (right, bottom)], fill="black")
    pen.line([place(size, value) for size, value in zip(sizes, values)], fill="steelblue", width=2)
    for size, value in zip(sizes, values):
        x, y = place(size, value)
        pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill="steelblue")
    for start in range(left, right, 12):
        y = place(0, float(limit))[1]
        pen.line([(start, y), (start + 6, y)], fill="firebrick")
    for value in (low, (low + high) / 2, high):
        _write(part, (left - 6, place(0, value)[1]), f"{value:.4g}", anchor="rm")
    for size in (sizes[0], sizes[len(sizes) // 2], sizes[-1]):
        _write(part, (place(size, low)[0], bottom + 6), f"{size:.0f}", anchor="ma")
    return part

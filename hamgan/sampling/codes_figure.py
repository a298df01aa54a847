"""The picture of what the ham sees: images, their soft segments, single segments, and the bases' usage over K."""

import io
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from hamgan.checkpoint import write_atomically
from hamgan.sampling.codes import HamCodes, draw_with_codes, order_of_use, overlay, segment_colors
from hamgan.sampling.draw import DrawsImages
from hamgan.sampling.grid import enlarge
from hamgan.sampling.latents import seeded_latents
from hamgan.sampling.output import Drawer, Selection

SIDE = 128
"""Of an image in the picture, about, pixels."""
MAX_IMAGES = 24
DPI = 100


def write_codes(
    drawer: Drawer, selection: Selection, out: Path, *, ham: int = 0, num_segments: int = 6, zoom: int | None = None
) -> str:
    """Draw a selection with its codes.

    A row an image: the image; the image tinted by its segments; then the most used segments one by one, bright where the
    segment is. A base keeps its colour in all images: all start from the same stored bases. Below: each base's share of
    the images after 0, 1, ..., K steps, and how well they fit.

    Args:
        drawer: The generator.
        selection: Which images, at most MAX_IMAGES.
        out: A `.png`.
        ham: Which of the generator's hams, from 0.
        num_segments: Shown one by one.
        zoom: Whole-number enlargement; None: to about SIDE pixels.

    Returns:
        A line that says what was written.

    Raises:
        ValueError: If there is no such ham, or the picture would be too large.
        OSError: If it cannot be written.
    """
    samples = selection.samples
    if out.suffix != ".png":
        raise ValueError(f"{out}: codes go into a picture; name a .png")
    if not 1 <= len(samples) <= MAX_IMAGES:
        raise ValueError(f"{out}: codes of {len(samples)} images; a picture holds 1 to {MAX_IMAGES}")
    G: DrawsImages = drawer.G
    z = seeded_latents(samples.seeds, G.config.z_dim, samples.truncation, samples.z_scale)
    images, found = draw_with_codes(G, z, torch.tensor(samples.labels))
    if not 0 <= ham < len(found):
        names = ", ".join(f"{number}: {codes.name}" for number, codes in enumerate(found))
        raise ValueError(f"--ham is {ham}; this generator has {names}")
    codes = found[ham]
    if not 1 <= num_segments <= codes.segments.shape[1]:
        raise ValueError(f"--segments is {num_segments}; this ham has 1 to {codes.segments.shape[1]}")
    zoom = zoom or max(1, round(SIDE / images.shape[3]))
    labels = [f"{drawer.class_name(y)}\nseed {seed}" for y, seed in zip(samples.labels, samples.seeds, strict=True)]
    figure = draw_codes(images, codes, labels, num_segments=num_segments, zoom=zoom)
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "hamgan"}):
        figure.savefig(content, format="png", dpi=DPI, metadata={"Software": "hamgan"})
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, lambda file: file.write(content.getvalue()))
    return (
        f"{out}: {len(samples)} images, ham {codes.name}, {codes.segments.shape[1]} bases, {len(codes.usage) - 1} steps"
    )


def draw_codes(images: Tensor, codes: HamCodes, labels: list[str], *, num_segments: int = 6, zoom: int = 4) -> Figure:
    """Lay the picture out; arguments as `draw_with_codes` returns them and as in `write_codes`."""
    order = order_of_use(codes)
    colors = torch.empty(len(order), 3)
    colors[order] = segment_colors(len(order))
    tinted = overlay(images, codes, colors, zoom=zoom)
    longest = max(len(line) for label in labels for line in label.split("\n"))
    side, gap, left, top, bottom = images.shape[3] * zoom, 6, 30 + 8 * longest, 46, 300
    num_rows, num_columns = len(images), 2 + num_segments
    width = left + num_columns * (side + gap) + 10
    height = top + num_rows * (side + gap) + bottom
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")

    def axes(x: float, y: float, w: float, h: float) -> Axes:
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    heads = ["image", "segments", *[f"base {int(r)}" for r in order[:num_segments]]]
    for row in range(num_rows):
        tiles = [enlarge(images[row], zoom), tinted[row]]
        tiles += [_lit(images[row], codes.segments[row, r], colors[r], zoom) for r in order[:num_segments]]
        y = top + row * (side + gap)
        for column, tile in enumerate(tiles):
            place = axes(left + column * (side + gap), y, side, side)
            place.imshow(tile.permute(1, 2, 0).numpy(), interpolation="nearest")
            place.set_axis_off()
            if row == 0:
                color = "black" if column < 2 else tuple((0.8 * colors[order[column - 2]]).tolist())
                place.set_title(heads[column], fontsize=11, color=color, fontweight="bold")
        figure.text(
            (left - 10) / width, 1 - (y + side / 2) / height, labels[row], ha="right", va="center", fontsize=9.5
        )
    base = top + num_rows * (side + gap) + 44
    usable = width - left - 10
    _draw_usage(axes(left, base, usable * 0.56, bottom - 104), codes, order, colors)
    _draw_error(axes(left + usable * 0.68, base, usable * 0.32, bottom - 104), codes)
    return figure


def _lit(image: Tensor, segment: Tensor, color: Tensor, zoom: int) -> Tensor:
    """Show one segment: the image in its colour where the segment is strong, nearly black where it is not."""
    picture = enlarge(image, zoom).float() / 255
    lightness = (picture * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    share = F.interpolate(segment[None, None], size=picture.shape[1:], mode="bicubic", align_corners=False)[0, 0]
    share = (share / segment.max().clamp_min(1e-6)).clamp(0, 1)
    lit = share * (0.45 + 0.55 * lightness) * color[:, None, None] + 0.10 * lightness
    return (lit * 255).round().clamp(0, 255).to(torch.uint8)


def _draw_usage(place: Axes, codes: HamCodes, order: Tensor, colors: Tensor) -> None:
    shares = codes.usage.mean(1).numpy() * 100
    steps = np.arange(len(shares))
    if len(steps) > 1:
        stack = [shares[:, r] for r in order.tolist()]
        place.stackplot(
            steps, stack, colors=[tuple(colors[r].tolist()) for r in order.tolist()], linewidth=0.6, edgecolor="white"
        )
        place.set_xlim(0, len(steps) - 1)
    place.set_ylim(0, 100)
    place.set_xticks(steps)
    place.set_xlabel("steps k of the decomposition")
    place.set_ylabel("share of the images (%)")
    place.set_title(f"how its {shares.shape[1]} bases share the images", fontsize=11)
    place.spines[["top", "right"]].set_visible(False)


def _draw_error(place: Axes, codes: HamCodes) -> None:
    errors = codes.error.numpy()
    steps = np.arange(len(errors))
    place.plot(steps, errors, color="#a1a1aa", linewidth=0.8)
    place.plot(steps, errors.mean(1), color="#18181b", linewidth=2, marker="o", markersize=4)
    place.set_xticks(steps)
    place.set_ylim(0, None)
    place.set_xlabel("steps k of the decomposition")
    place.set_ylabel("|X - D C| / |X|")
    place.set_title("what they leave unexplained", fontsize=11)
    place.spines[["top", "right"]].set_visible(False)

"""Samples as a user asks for them: seeds and classes as text; a grid, a folder, an archive or a video out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from hamgan.sampling.directions import Directions, edits
from hamgan.sampling.draw import DrawsImages, draw_images, draw_latents, joined
from hamgan.sampling.grid import enlarge, make_grid, save_picture, save_png
from hamgan.sampling.interpolate import Walk, frames_of, walks
from hamgan.sampling.latents import parse_classes, parse_seeds, seeded_latents
from hamgan.sampling.sheet import TILE, Row, draw_sheet, side_by_side
from hamgan.sampling.store import SampleList, write_folder, write_npz
from hamgan.sampling.video import SUFFIXES, write_video

MAX_COLUMNS = 16
MAX_GRID = 4096
"""Images in one picture."""
OTHER_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".zip",
    ".tar",
    ".h5",
    ".npy",
    ".avi",
    ".mov",
    ".webm",
)
"""Of files that are not written here; anything else without a known suffix is a folder."""


@dataclass(frozen=True, kw_only=True)
class Drawer:
    """A generator with what its pictures are labelled with."""

    G: DrawsImages
    """In evaluation mode, with the batch-norm statistics of the truncation."""
    class_names: Sequence[str]
    """Name of each class; may be empty."""
    title: str
    """Which snapshot it is."""

    def class_name(self, y: int) -> str:
        """Return a class's name, or its number where it has none."""
        return self.class_names[y] if y < len(self.class_names) else f"class {y}"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Seeds and classes, and how their images lie in a grid."""

    seeds: list[int]
    """Distinct ones, as asked for."""
    classes: list[int]
    """Likewise."""
    samples: SampleList
    """Every image."""
    num_columns: int
    """Of a grid: a row a class where that fits."""


def select(
    drawer: Drawer,
    *,
    seeds: str,
    classes: str,
    num_images: int | None = None,
    truncation: float | None = None,
    z_scale: float = 1.0,
) -> Selection:
    """Read what a user asks for.

    Args:
        drawer: Of which the classes are.
        seeds: Such as `0-63,100`; every class takes every seed.
        classes: Names, numbers and ranges separated by commas, or `all`.
        num_images: Instead of `seeds`: image i has seed i and class number i of the list, which goes round. These are the
            images that `hamgan eval` measures.
        truncation: As in `seeded_latents`.
        z_scale: Likewise.

    Raises:
        ValueError: For seeds, classes or a number that are not allowed.
    """
    class_list = parse_classes(classes, drawer.class_names, drawer.G.config.num_classes)
    if num_images is None:
        seed_list = parse_seeds(seeds)
        every_seed = seed_list * len(class_list)
        labels = [y for y in class_list for _ in seed_list]
        num_columns = _columns(len(seed_list), len(class_list))
    elif num_images < 1:
        raise ValueError(f"--num-images is {num_images}; it must be at least 1")
    else:
        every_seed = seed_list = list(range(num_images))
        labels = [class_list[i % len(class_list)] for i in range(num_images)]
        num_columns = _columns(num_images, 1)
    samples = SampleList(
        seeds=every_seed, labels=labels, class_names=drawer.class_names, truncation=truncation, z_scale=z_scale
    )
    return Selection(seeds=seed_list, classes=class_list, samples=samples, num_columns=num_columns)


def write_samples(
    drawers: Sequence[Drawer], selection: Selection, out: Path, *, labelled: bool = False, zoom: int | None = None
) -> str:
    """Draw every image of a selection and write it.

    Args:
        drawers: One; or several, side by side in a picture.
        selection: Which images.
        out: `.png`: a grid, a row a class; `.npz`: `arr_0` (N, H, W, 3), `labels`, `seeds`; else a folder of PNGs. A killed
            folder or archive goes on with the same call.
        labelled: Whether a picture names classes and seeds; several snapshots are always named.
        zoom: Whole-number enlargement in a picture; None: 1, or to about 64 pixels where it is labelled.

    Returns:
        A line that says what was written.

    Raises:
        ValueError: If `out` cannot hold what was asked for, or holds something else.
        OSError: If it cannot be written.
    """
    samples = selection.samples
    line = f"{out}: {len(samples)} images, {len(selection.classes)} classes x {len(selection.seeds)} seeds"
    if len(samples) == len(selection.seeds):
        line = f"{out}: {len(samples)} images of {len(selection.classes)} classes"
    if out.suffix == ".png":
        if len(samples) > MAX_GRID:
            raise ValueError(f"{out}: a picture of {len(samples)} images; at most {MAX_GRID}, a folder holds more")
        if labelled or len(drawers) > 1:
            save_picture(out, side_by_side(_sheets(drawers, selection, zoom)))
        else:
            images = draw_images(drawers[0].G, samples.seeds, samples.labels, samples.truncation, samples.z_scale)
            save_png(out, enlarge(make_grid(images, selection.num_columns), zoom or 1))
        return line
    if len(drawers) > 1:
        raise ValueError(f"{out}: several snapshots go side by side into a picture; name a .png")
    if out.suffix in OTHER_SUFFIXES:
        raise ValueError(f"{out}: allowed are a .png, an .npz, a {', a '.join(SUFFIXES)}, or a folder")
    if out.suffix == ".npz":
        kept = write_npz(drawers[0].G, samples, out)
    else:
        kept = write_folder(drawers[0].G, samples, out)
    return f"{line}{f', {kept} of them kept from before' if kept else ''}"


def _sheets(drawers: Sequence[Drawer], selection: Selection, zoom: int | None) -> list[Image.Image]:
    """Draw a labelled grid of each generator: a row a class, a column a seed, where the selection is one; else rows."""
    samples, columns = selection.samples, selection.num_columns
    seeds, classes = selection.seeds, selection.classes
    is_grid = len(samples) == len(seeds) * len(classes)
    labels = [""] * -(-len(samples) // columns)
    if is_grid and len(classes) > 1:
        labels[:: len(seeds) // columns] = [drawers[0].class_name(y) for y in classes]
    names = None
    if is_grid and columns == len(seeds):
        names = {i: str(seed) if i else f"seed {seed}" for i, seed in enumerate(seeds)}
    sheets = []
    for number, drawer in enumerate(drawers):
        images = draw_images(drawer.G, samples.seeds, samples.labels, samples.truncation, samples.z_scale)
        title = [drawer.title] if len(drawers) > 1 else []
        title += [drawer.class_name(classes[0])] if len(classes) == 1 else []
        rows = [
            Row(images=part, label="" if number else label)  # named once, on the left
            for part, label in zip(images.split(columns), labels, strict=True)
        ]
        sheets.append(draw_sheet(rows, columns=names, title=", ".join(title), zoom=zoom))
    return sheets


def write_walks(
    drawer: Drawer, rows: Sequence[Walk], out: Path, *, frames_per_second: int = 24, zoom: int | None = None
) -> str:
    """Draw an interpolation and write it.

    Args:
        drawer: The generator.
        rows: Its walks.
        out: `.png`: a row a walk, keys framed and named; `.gif` or `.mp4`: all walks at once; else a folder of PNGs.
        frames_per_second: Of a video.
        zoom: Whole-number enlargement in a picture or video; None: to about 64 pixels, in a video 128.

    Returns:
        A line that says what was written.

    Raises:
        ValueError: If `out` cannot hold it.
        OSError: If it cannot be written.
    """
    if out.suffix in (*OTHER_SUFFIXES, ".npz"):
        raise ValueError(f"{out}: allowed are a .png, a {', a '.join(SUFFIXES)}, or a folder")
    resolution, frames = drawer.G.config.resolution, len(rows[0].z)
    if out.suffix == ".png" and len(rows) * frames > MAX_GRID:
        raise ValueError(f"{out}: a picture of {len(rows) * frames} images; at most {MAX_GRID}: take fewer --frames")
    if out.suffix == ".png":
        sheet = [Row(images=walk.draw(drawer.G), label=walk.label, marked=frozenset(walk.keys)) for walk in rows]
        save_picture(out, draw_sheet(sheet, columns=rows[0].keys, zoom=zoom))
    elif out.suffix in SUFFIXES:
        num_columns = max(round(len(rows) ** 0.5), 1)
        zoom = zoom or max(1, round(2 * TILE / resolution))
        stream = (enlarge(make_grid(images, num_columns), zoom) for images in frames_of(drawer.G, rows))
        write_video(out, stream, frames_per_second=frames_per_second)
    else:
        for frame, images in enumerate(frames_of(drawer.G, rows)):
            for number, image in enumerate(images):
                save_png(out / f"{number:03d}-{frame:06d}.png", image)
    return f"{out}: {len(rows)} rows of {frames} images"


def write_loop(
    drawer: Drawer, selection: Selection, out: Path, *, frames_per_second: int = 24, zoom: int | None = None
) -> str:
    """Write a video that passes a selection's seeds, a second from one to the next, and comes back; a tile a class.

    Args:
        drawer: The generator.
        selection: Its seeds and classes.
        out: `.gif` or `.mp4`.
        frames_per_second: Of the video.
        zoom: As in `write_walks`.

    Returns:
        A line that says what was written.

    Raises:
        ValueError: If the video cannot be written as asked.
        OSError: If it cannot be written.
    """
    config, samples = drawer.G.config, selection.samples
    rows = walks(
        selection.seeds,
        selection.classes,
        z_dim=config.z_dim,
        num_classes=config.num_classes,
        class_names=drawer.class_names,
        frames=max(frames_per_second, 1),
        loop=True,
        truncation=samples.truncation,
        z_scale=samples.z_scale,
    )
    return write_walks(drawer, rows, out, frames_per_second=frames_per_second, zoom=zoom)


def write_directions(
    drawer: Drawer,
    found: Sequence[Directions],
    selection: Selection,
    out: Path,
    *,
    num_directions: int = 5,
    reach: float = 3.0,
    num_steps: int = 7,
    zoom: int | None = None,
) -> str:
    """Draw strips of edits: a row a direction, from -reach to reach, the image itself framed in the middle.

    Args:
        drawer: The generator.
        found: Directions of one layer or of several.
        selection: The images that are edited, a block each.
        out: A `.png`.
        num_directions: Of each layer, the strongest first.
        reach: How far the outermost edits go, in deviations of the normal.
        num_steps: Images of a strip, odd.
        zoom: Whole-number enlargement; None: to about 64 pixels.

    Returns:
        A line that says what was written.

    Raises:
        ValueError: If a number is not allowed.
        OSError: If it cannot be written.
    """
    if num_steps < 3 or num_steps % 2 == 0:
        raise ValueError(f"--steps is {num_steps}; it must be odd, and at least 3")
    if not 0 < reach <= 20:
        raise ValueError(f"--reach is {reach}; it must be in (0, 20]")
    if num_directions < 1:
        raise ValueError(f"--directions is {num_directions}; it must be at least 1")
    chosen = [(layer, index) for layer in found for index in range(min(num_directions, len(layer.vectors)))]
    samples = selection.samples
    if out.suffix != ".png" or len(samples) * len(chosen) * num_steps > MAX_GRID:
        raise ValueError(f"{out}: edits go into a .png of at most {MAX_GRID} images; take fewer seeds or directions")
    strengths = torch.linspace(-reach, reach, num_steps)
    strengths[num_steps // 2] = 0
    latents = seeded_latents(samples.seeds, drawer.G.config.z_dim, samples.truncation, samples.z_scale)
    sheets = []
    for z, y, seed in zip(latents, samples.labels, samples.seeds, strict=True):
        rows = []
        for layer, index in chosen:
            edited = edits(z, layer.vectors[index], strengths)
            images = joined(drawer.G, draw_latents(drawer.G, edited, torch.full((num_steps,), y)))
            label = f"layer {layer.layer}, no. {index + 1}, gain {layer.gains[index]:.2g}"
            rows.append(Row(images=images, label=label, marked=frozenset({num_steps // 2})))
        columns = {i: f"{value:+.3g}" if value else "0" for i, value in enumerate(strengths.tolist())}
        sheets.append(draw_sheet(rows, columns=columns, title=f"{drawer.class_name(y)}, seed {seed}", zoom=zoom))
    save_picture(out, side_by_side(sheets))
    names = ", ".join(f"layer {layer.layer}: {layer.name}" for layer in found)
    return f"{out}: {len(chosen)} directions ({names}) of {len(samples)} images"


def _columns(num_seeds: int, num_classes: int) -> int:
    """A row a class; one class alone fills a square, and long rows are broken at a divisor where there is one."""
    if num_classes == 1:
        return min(max(round(num_seeds**0.5), 1), MAX_COLUMNS)
    if num_seeds <= MAX_COLUMNS:
        return num_seeds
    return max(columns for columns in range(1, MAX_COLUMNS + 1) if num_seeds % columns == 0)

"""Pictures from runs and snapshots: what joins `sampling` with snapshots, training files and feature networks."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hamgan import snapshot
from hamgan.comparison import reference_of
from hamgan.data.hdf5 import TrainingFile
from hamgan.evaluation import EvaluationPlan, load_protocol
from hamgan.metrics import Extractor
from hamgan.sampling.draw import draw_images
from hamgan.sampling.grid import save_picture
from hamgan.sampling.output import MAX_GRID, Drawer, Selection
from hamgan.sampling.sheet import Row, draw_sheet

BLOCK = 4096
"""Training images whose features are compared at once."""


def open_drawer(
    source: Path,
    *,
    truncation: float | None = None,
    batch_norm: snapshot.BatchNormMode = "auto",
    device: torch.device,
) -> Drawer:
    """Read a snapshot and make it ready to draw at a truncation; says on stderr which batch-norm statistics it takes.

    Args:
        source: A snapshot, or a run folder, whose newest is taken.
        truncation: As in `sampling.latents`.
        batch_norm: As in `Snapshot.at`.
        device: Where to draw.

    Raises:
        FileNotFoundError: If there is no snapshot.
        ValueError: If it is damaged, or the truncation not allowed.
    """
    path = snapshot.find(source)
    shot = snapshot.read(path)
    shot.generator.to(device)
    ready = shot.at(truncation, batch_norm)
    if ready.warning:
        print(f"warning: {path}: {ready.warning}", file=sys.stderr)
    elif truncation is not None or batch_norm != "auto":
        print(f"{path}: batch norm takes the {ready.batch_norm}", file=sys.stderr)
    return Drawer(G=ready.generator, class_names=shot.class_names, title=title_of(path, shot))


def title_of(path: Path, shot: snapshot.Snapshot) -> str:
    """Name a snapshot by its step, or by its file where that is not known."""
    step = shot.provenance.get("step")
    return f"step {step:,}" if isinstance(step, int) else path.stem


def open_drawers(
    sources: Sequence[Path],
    *,
    truncation: float | None = None,
    batch_norm: snapshot.BatchNormMode = "auto",
    device: torch.device,
) -> list[Drawer]:
    """Open several snapshots that are to be seen side by side, as `open_drawer`.

    Raises:
        ValueError: If their classes or resolutions differ.
    """
    drawers = [open_drawer(source, truncation=truncation, batch_norm=batch_norm, device=device) for source in sources]
    for source, drawer in zip(sources, drawers, strict=True):
        for key in ("num_classes", "resolution"):
            ours, first = getattr(drawer.G.config, key), getattr(drawers[0].G.config, key)
            if ours != first:
                raise ValueError(
                    f"{source}: {key} is {ours}, and {first} in {sources[0]}; side by side they must agree"
                )
    if len({drawer.title for drawer in drawers}) < len(drawers):
        # Equal steps of different runs: the paths tell them apart.
        titles = [str(snapshot.find(source).with_suffix("")) for source in sources]
        return [Drawer(G=d.G, class_names=d.class_names, title=title) for d, title in zip(drawers, titles, strict=True)]
    return drawers


def nearest_images(
    queries: NDArray[np.float32], pool: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find the nearest rows of a pool that may be larger than memory.

    Args:
        queries: (n, d).
        pool: (N, d), read a block at a time.
        count: Neighbours of each query; N at most.

    Returns:
        Their numbers and their Euclidean distances, nearest first, (n, count) each; of equal ones the first.
    """
    count = min(count, len(pool))
    wanted = torch.from_numpy(np.ascontiguousarray(queries)).double()
    distances = torch.empty(len(wanted), 0, dtype=torch.float64)
    numbers = torch.empty(len(wanted), 0, dtype=torch.int64)
    for start in range(0, len(pool), BLOCK):
        block = torch.from_numpy(np.array(pool[start : start + BLOCK])).double()
        distances = torch.cat([distances, torch.cdist(wanted, block)], 1)
        numbers = torch.cat([numbers, (start + torch.arange(len(block))).expand(len(wanted), -1)], 1)
        distances, order = distances.sort(dim=1, stable=True)
        distances, order = distances[:, :count], order[:, :count]
        numbers = numbers.gather(1, order)
    return numbers.numpy(), distances.numpy()


def write_nearest(
    drawer: Drawer,
    selection: Selection,
    out: Path,
    *,
    data: Path,
    plan: EvaluationPlan,
    num_neighbours: int = 3,
    zoom: int | None = None,
) -> str:
    """Draw samples, each framed and followed by the training images that a feature network finds nearest.

    The training file's features are those that `hamgan eval` stores beside it; they are built if they are absent.

    Args:
        drawer: The generator.
        selection: Which images; a row a class.
        out: A `.png`.
        data: The training file.
        plan: Names the feature network and its device.
        num_neighbours: Training images beside each sample, 1 to 15.
        zoom: Whole-number enlargement; None: to about 64 pixels.

    Returns:
        A line that says what was written, and the nearest pair of all.

    Raises:
        ValueError: If the picture would be too large, or the files do not fit together.
        OSError: If it cannot be written.
    """
    samples = selection.samples
    if out.suffix != ".png":
        raise ValueError(f"{out}: nearest training images go into a picture; name a .png")
    if not 1 <= num_neighbours <= 15:
        raise ValueError(f"--neighbours is {num_neighbours}; it must be in 1..15")
    if len(samples) * (1 + num_neighbours) > MAX_GRID:
        raise ValueError(f"{out}: {len(samples)} samples with neighbours; at most {MAX_GRID} images fit a picture")
    file = TrainingFile(data)
    if file.resolution != drawer.G.config.resolution:
        raise ValueError(f"{data}: images of {file.resolution} pixels; the snapshot draws {drawer.G.config.resolution}")
    _, extractor = load_protocol(plan)
    stored = reference_of(file, extractor).features()
    if stored is None:
        raise ValueError(f"{data}: its stored statistics keep no features; move them away to build them anew")
    images = draw_images(drawer.G, samples.seeds, samples.labels, samples.truncation, samples.z_scale)
    numbers, distances = nearest_images(_features(extractor, images), stored.pool, num_neighbours)
    used, places = np.unique(numbers, return_inverse=True)
    real = torch.from_numpy(file.read(used)).permute(0, 3, 1, 2)
    neighbours = real[torch.from_numpy(places.reshape(numbers.shape))]
    groups = torch.cat([images[:, None], neighbours], 1)
    per_row = min(selection.num_columns, max(16 // groups.shape[1], 1))
    rows: list[Row] = []
    for start, stop in _row_spans(selection, per_row):
        y = samples.labels[start]
        label = drawer.class_name(y) if not rows or y != samples.labels[start - 1] else ""
        marked = frozenset(range(0, (stop - start) * groups.shape[1], groups.shape[1]))
        rows.append(Row(images=groups[start:stop].flatten(0, 1), label=label, marked=marked))
    title = f"samples (framed) and their nearest training images by {extractor.name}"
    save_picture(out, draw_sheet(rows, title=title, zoom=zoom))
    nearest = int(distances[:, 0].argmin())
    return (
        f"{out}: {len(samples)} samples, each with {numbers.shape[1]} of {file.num_images} training images; nearest: "
        f"{samples.file_name(nearest)} and image {numbers[nearest, 0]}, distance {distances[nearest, 0]:.4g}"
    )


def _features(extractor: Extractor, images: Tensor) -> NDArray[np.float32]:
    return torch.cat([extractor(part.contiguous()).pool.cpu() for part in images.split(64)]).numpy()


def _row_spans(selection: Selection, per_row: int) -> list[tuple[int, int]]:
    """Cut the samples into rows that never mix two classes' blocks of seeds."""
    total = len(selection.samples)
    block = len(selection.seeds) if total == len(selection.seeds) * len(selection.classes) else total
    return [
        (start, min(start + per_row, first + block))
        for first in range(0, total, block)
        for start in range(first, first + block, per_row)
    ]

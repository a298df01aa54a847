"""Samples as a user asks for them: seeds and classes as text, a grid, a folder or an archive out."""

import re
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from hamgan.sampling.draw import DrawsImages, draw_chunks, draw_images
from hamgan.sampling.grid import make_grid, save_npz, save_png
from hamgan.sampling.latents import parse_classes, parse_seeds

MAX_COLUMNS = 16


def write_samples(
    G: DrawsImages,
    class_names: Sequence[str],
    *,
    seeds: str,
    classes: str,
    truncation: float | None,
    out: Path,
) -> str:
    """Draw every class with every seed and write the images.

    Args:
        G: In evaluation mode.
        class_names: Name of each class; may be empty.
        seeds: Such as `0-63,100`.
        classes: Names and numbers separated by commas, or `all`.
        truncation: As in `seeded_latents`.
        out: `.png`: a grid, a row a class; `.npz`: `arr_0` (N, H, W, 3), `labels`, `seeds`; else a folder of PNGs.

    Returns:
        A line that says what was written.

    Raises:
        ValueError: For seeds, classes or a truncation that are not allowed.
        OSError: If it cannot be written.
    """
    seed_list = parse_seeds(seeds)
    num_classes = G.config.num_classes
    class_list = list(range(num_classes)) if classes == "all" else parse_classes(classes, class_names, num_classes)
    all_seeds = seed_list * len(class_list)
    labels = [y for y in class_list for _ in seed_list]
    if out.suffix in (".png", ".npz"):
        out.parent.mkdir(parents=True, exist_ok=True)
        images = draw_images(G, all_seeds, labels, truncation)
        if out.suffix == ".png":
            save_png(out, make_grid(images, _columns(len(seed_list), len(class_list))))
        else:
            save_npz(out, images, labels, all_seeds)
    else:
        out.mkdir(parents=True, exist_ok=True)
        names = (_file_name(y, seed, class_names) for y, seed in zip(labels, all_seeds, strict=True))
        with tqdm(total=len(labels), unit="img", delay=2) as bar:
            for chunk in draw_chunks(G, all_seeds, labels, truncation):
                for image in chunk:
                    save_png(out / f"{next(names)}.png", image)
                bar.update(len(chunk))
    return f"{out}: {len(labels)} images, {len(class_list)} classes x {len(seed_list)} seeds"


def _columns(num_seeds: int, num_classes: int) -> int:
    """A row a class; one class alone fills a square, and long rows are broken at a divisor where there is one."""
    if num_classes == 1:
        return min(max(round(num_seeds**0.5), 1), MAX_COLUMNS)
    if num_seeds <= MAX_COLUMNS:
        return num_seeds
    return max(columns for columns in range(1, MAX_COLUMNS + 1) if num_seeds % columns == 0)


def _file_name(y: int, seed: int, class_names: Sequence[str]) -> str:
    """Name an image by class and seed; a stranger's class name cannot leave the folder."""
    name = re.sub(r"[^\w.-]+", "_", class_names[y]).strip(".") if y < len(class_names) else ""
    return f"{y:04d}{'-' if name else ''}{name}-seed{seed:06d}"

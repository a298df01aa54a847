"""Measure standing statistics for truncations and keep them in a snapshot."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from hamgan import model_card, snapshot
from hamgan.sampling.standing import StandingStatistics, measure_standing_statistics


def recalibrate(
    source: Path,
    truncations: Sequence[float | None],
    *,
    out: Path | None = None,
    num_images: int = 6400,
    batch_size: int = 128,
    device: torch.device,
) -> str:
    """Measure batch norm's statistics for each truncation and store them in the snapshot.

    The file is replaced, in one step, after each level. Levels that it has from the same number of images and the same batch
    size are kept, so that a killed call goes on; levels at other truncations stay.

    Args:
        source: A snapshot, or a run folder, whose newest is taken.
        truncations: Levels; None: the plain normal.
        out: Another file to write; None: the snapshot itself. A file that is there must hold the same weights.
        num_images: For each level.
        batch_size: Images normalised together.
        device: Where to draw.

    Returns:
        A line that says what the snapshot holds now.

    Raises:
        FileNotFoundError: If there is no snapshot.
        ValueError: If it is damaged, a truncation out of range, or `out` another generator.
        OSError: If it cannot be written; what was there stays.
    """
    path = snapshot.find(source)
    target = out or path
    shot = snapshot.read(path)
    if out is not None and out.is_file():
        begun = snapshot.read(out)
        if not _same_weights(begun, shot):
            raise ValueError(f"{out}: holds another generator than {path}; choose another --out")
        shot = replace(shot, standing=begun.standing)
    for key, value in {"num_images": num_images, "batch_size": batch_size}.items():
        if value < 2:
            raise ValueError(f"{key} is {value}; it must be at least 2")
    num_images = -(-num_images // batch_size) * batch_size
    wanted = dict.fromkeys(truncations)
    kept = [level for level in shot.standing if level.truncation in wanted and _measured(level, num_images, batch_size)]
    missing = [value for value in wanted if value not in {level.truncation for level in kept}]
    # Drawing moves a network between devices and computes on it, so it gets a copy of its own.
    G = snapshot.read(path).generator.to(device)
    with tqdm(total=len(missing) * num_images, unit="img", delay=2) as bar:
        for truncation in missing:
            bar.set_description(f"truncation {'none' if truncation is None else f'{truncation:g}'}")
            found = measure_standing_statistics(
                G,
                z_dim=G.config.z_dim,
                num_classes=G.config.num_classes,
                truncation=truncation,
                num_images=num_images,
                batch_size=batch_size,
                progress=bar.update,
            )
            levels = [level for level in shot.standing if level.truncation != truncation]
            shot = replace(shot, standing=tuple(sorted([*levels, found], key=_order)))
            target.parent.mkdir(parents=True, exist_ok=True)
            model_card.write_snapshot(target, shot)
    if not missing and not target.is_file():
        model_card.write_snapshot(target, shot)
    text = ", ".join(level.label for level in shot.standing)
    was = f"; {len(kept)} of them were there" if kept else ""
    return f"{target}: standing statistics for truncations {text}, {num_images} images each{was}"


def _measured(level: StandingStatistics, num_images: int, batch_size: int) -> bool:
    return (level.num_images, level.batch_size) == (num_images, batch_size)


def _order(level: StandingStatistics) -> float:
    return float("inf") if level.truncation is None else level.truncation


def _same_weights(ours: snapshot.Snapshot, theirs: snapshot.Snapshot) -> bool:
    first, second = ours.generator.state_dict(), theirs.generator.state_dict()
    return ours.generator.config == theirs.generator.config and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )

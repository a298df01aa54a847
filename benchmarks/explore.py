"""How long does the page of `hamgan explore` take to draw, and is that under a second?

For both emoji presets, as the page asks for it: one image; the same with two pinned images and the way between; the same with
the ham's codes. Each takes what the page takes: from the controls' values to the HTML that holds the pictures. Beside each the
share of a second, the target.

Run: python benchmarks/explore.py [SNAPSHOT]   (default: the generators of configs/emoji32.toml and emoji64.toml, untrained)
"""

import statistics
import sys
import time
from pathlib import Path

import torch

from hamgan import snapshot
from hamgan.explore.explorer import Explorer, Point, open_explorer
from hamgan.explore.page import render_page
from hamgan.models.generator import Generator
from hamgan.training.config import load_config

ROUNDS = 15
TARGET = 1.0  # second


def untrained(preset: str) -> Explorer:
    """Return an explorer of a preset's generator."""
    torch.manual_seed(0)
    config = load_config(Path(__file__).parent.parent / "configs" / f"{preset}.toml").generator
    G = Generator(config).eval().requires_grad_(False)
    return Explorer(snapshot.Snapshot(generator=G), preset, torch.device("cpu"))


def seconds(explorer: Explorer, codes: bool, pins: tuple[Point | None, Point | None]) -> list[float]:
    """Return how long each of ROUNDS pictures took, each of another seed."""
    found = []
    for seed in range(-2, ROUNDS):  # the first two are not counted
        start = time.perf_counter()
        render_page(explorer, seed + 2, 0, 1, 0.3, False, 0.8, codes, 0.75, 0, 0.5, "spherical", *pins)
        found.append(time.perf_counter() - start)
    return found[2:]


def main(path: str | None) -> None:
    """Print medians, the slowest, and the share of a second."""
    explorers = (
        [open_explorer(Path(path), torch.device("cpu"))] if path else [untrained("emoji32"), untrained("emoji64")]
    )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {ROUNDS} pictures of each kind")
    print(f"{'':40} {'median s':>9} {'slowest s':>10} {'slowest / target':>17}")
    two = (Point(seed=100), Point(seed=101, first=1))
    for explorer in explorers:
        for name, codes, pins in (
            ("image", False, (None, None)),
            ("and the way", False, two),
            ("and codes", True, two),
        ):
            found = seconds(explorer, codes, pins)
            label = f"{explorer.title[-28:]}, {name}"
            print(f"{label:40} {statistics.median(found):9.3f} {max(found):10.3f} {max(found) / TARGET:17.2f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)

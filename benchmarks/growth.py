"""How do a training step's time, FLOPs and memory grow with resolution, width, batch and the context block's pixels?

Our own step, with the published channel plans and a Hamburger, in the precision that this machine's runs take; one thing is
changed in each table, and every ratio is to the table's first row. The rows of a table take turns within one process, so that
what else the machine does hits all alike; medians. FLOPs are counted, those of the optimiser and the norms left out.

A resolution changes the plan too: at 32x32 it has 4 times the width in every block, from 64x64 on 16 times in the first two
and half as much in each that follows. Context blocks are a Hamburger and self-attention with pooled keys in G and D alike.

Memory: what a step adds at the most to weights, gradients and Adam's moments, in a process of its own, as in train_step.py.

Run: python benchmarks/growth.py [TABLE ...] [--repeats N] [--no-memory]
"""

import argparse
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from functools import cache
from pathlib import Path

import torch
from measure import memory_of, print_memory, take_turns

from hamgan.device import resolve_autocast
from hamgan.training.config import TrainConfig, load_config
from hamgan.training.estimate import estimate
from hamgan.training.trial import trial_step

QUICK = ["--repeats", "3"]
CPU = torch.device("cpu")
PRESET = Path(__file__).parents[1] / "configs" / "imagenet128_hamgan_strong.toml"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One configuration."""

    resolution: int = 64
    width: int = 16
    batch: int = 8
    context: str = "ham"
    side: int = 16
    """Of the context block's map, pixels."""

    def config(self) -> TrainConfig:
        """Return the configuration of a run."""
        overrides = [f"--batch_size={self.batch}", "--micro_batch=0"]
        config = load_config(PRESET, overrides)
        shape = {"resolution": self.resolution, "channels": self.width, "channel_multipliers": ()}
        place = {"context": self.context, "context_resolutions": (self.side,)}
        return replace(
            config,
            generator=replace(config.generator, **shape, **place),
            discriminator=replace(config.discriminator, **shape, **place),
        )

    def step(self) -> Callable[[], None]:
        """Return a whole training step."""
        return trial_step(self.config(), CPU)


def context_points() -> dict[str, Point]:
    """Return no context block, then either kind on maps of three sizes."""
    plain = Point(resolution=128, batch=4, context="none")
    points = {"none": plain}
    for context, name in (("ham", "Hamburger"), ("attention", "attention")):
        for side in (16, 32, 64):
            points[f"{name}, {side**2} pixels"] = replace(plain, context=context, side=side)
    return points


TABLES: dict[str, tuple[str, dict[str, Point]]] = {
    "resolution": (
        "width 16, batch 8, Hamburger at 16x16",
        {f"{side}x{side}": Point(resolution=side) for side in (32, 64, 128)},
    ),
    "width": (
        "64x64, batch 8, Hamburger at 16x16",
        {f"width {width}": Point(width=width) for width in (8, 16, 32)},
    ),
    "batch": (
        "64x64, width 16, Hamburger at 16x16",
        {f"batch {batch}": Point(batch=batch) for batch in (4, 8, 16, 32)},
    ),
    "context": ("128x128, width 16, batch 4", context_points()),
}
"""What stays the same, and the rows."""


def _table(name: str) -> str:
    # Not `choices`: with any number of tables argparse would hold the empty list against them.
    if name not in TABLES:
        raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(TABLES)}")
    return name


@cache
def added_memory(point: Point) -> float:
    """Return the memory that a step adds, MB; points are in several tables."""
    return memory_of(__file__, "--memory-of", *map(str, astuple(point)))[0]


def print_table(name: str, *, repeats: int, memory: bool) -> None:
    """Measure one table and print it."""
    same, points = TABLES[name]
    seconds = take_turns({row: point.step() for row, point in points.items()}, repeats)
    print(f"\n### {name}: {same}\n")
    print("| | ms a step | ratio | images/s | GFLOP a step | ratio | a step's memory, MB | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    first: list[float] = []
    for row, point in points.items():
        flops = estimate(point.config()).step_flops * point.batch
        values = [seconds[row] * 1e3, flops / 1e9, added_memory(point) if memory else float("nan")]
        first = first or values
        time, work, added = ([f"{value:.0f}", f"{value / one:.2f}"] for value, one in zip(values, first, strict=True))
        cells = [row, *time, f"{point.batch / seconds[row]:.1f}", f"{values[1]:.1f}", work[1], *added]
        print(f"| {' | '.join(cells if memory else [*cells[:-2], '', ''])} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=[], type=_table, metavar="TABLE", help=f"of {', '.join(TABLES)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}; it must be at least 1")
    if options.memory_of:
        resolution, width, batch, context, side = options.memory_of
        point = Point(resolution=int(resolution), width=int(width), batch=int(batch), context=context, side=int(side))
        print_memory(point.step())
        return
    precision, _ = resolve_autocast(Point().config().precision, CPU)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {precision}; medians of {options.repeats}")
    for name in options.tables or TABLES:
        print_table(name, repeats=options.repeats, memory=not options.no_memory)


if __name__ == "__main__":
    main()

"""Do two processes train as fast as one with two threads, and what does synchronised batch norm cost?

Whole runs of the command line, a preset at its own global batch, in turns: one process with two threads; two processes with
one thread each under torchrun; the same with batch norm kept local. The rate is the run's own, images a second between two rows
of statistics, without the first row; medians. Two processes also load, average gradients, and wait for each other.

Run: python benchmarks/training_processes.py [PRESET] [--rounds N] [--steps N] [--set=--section.key=value ...]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PRESET = Path(__file__).parents[1] / "configs" / "emoji32.toml"
QUICK = ["--rounds", "1"]
ROW = 5
"""Steps a row of statistics."""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SIDES: dict[str, tuple[int, list[str]]] = {
    "one process, two threads": (1, []),
    "two processes": (2, []),
    "two processes, batch norm local": (2, ["--generator.cross_replica=false"]),
}
TARGET = 1.10


def rates(preset: Path, root: Path, num_processes: int, overrides: list[str], steps: int) -> list[float]:
    """Train a few steps and return images a second, a value a row."""
    quiet = ["log.health_every", "log.grid_every", "log.checkpoint_every"]
    command = [sys.executable, *(TORCHRUN if num_processes > 1 else []), "-m", "hamgan", "train", str(preset)]
    command += ["--root", str(root), f"--duration={steps} steps", f"--log.stats_every={ROW} steps", "--eval.extractor="]
    command += [f"--data.path={root.parent}/data.h5", *(f"--{key}={steps * 10} steps" for key in quiet), *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": str(2 // num_processes)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    (file,) = root.glob("*/stats.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [row["images_per_second"] for row in rows if "images_per_second" in row][1:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", type=Path, default=PRESET)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--set", action="append", default=[], help="an override, as --set=--batch_size=64")
    options = parser.parse_args()
    seen: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as root:
        for round_number in range(options.rounds):
            for index, (side, (size, more)) in enumerate(SIDES.items()):
                folder = Path(root) / f"{round_number}-{index}"
                seen[side] += rates(options.preset, folder, size, [*options.set, *more], options.steps)
    medians = {side: statistics.median(values) for side, values in seen.items()}
    one, two, local = medians.values()
    print("| side | images/s | time of a step over one process's |\n|---|---|---|")
    for side, rate in medians.items():
        print(f"| {side} | {rate:.1f} | {one / rate:.3f} |")
    print(f"\ntwo processes take {one / two:.3f} times as long as one (target: at most {TARGET:.2f})")
    print(f"synchronised batch norm: {1 - two / local:.1%} of a step")


if __name__ == "__main__":
    main()

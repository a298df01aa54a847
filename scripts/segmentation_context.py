"""What does the Hamburger add to a segmentor? The same recipe with it and without it, over several seeds.

Trains every combination of seed and context block (NMF, identity: the head without a Hamburger), tests each on the preset's
test images, and prints a table: mIoU of each run, mean and sample deviation of each context, and the mean of the differences
at the same seed with its standard error. Runs lie below --root; the same command goes on where it was stopped.

    python scripts/segmentation_context.py configs/segmentation_demo.toml --seeds 0,1,2 --jobs 2
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hamgan.segmentation.config import load_config
from hamgan.segmentation.count import count_multiply_adds, count_parameters, shapes_of

CONTEXTS = ("NMF", "identity")


def train(preset: Path, root: Path, context: str, seed: int, threads: int, further: list[str]) -> dict[str, float]:
    """Train one run, or go on with it, and return its last metrics."""
    place = root / f"{context}-seed{seed}"
    place.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "hamgan", "segmentation", "train", str(preset), "--root", str(place)]
    command += ["--model.ham", context, "--seed", str(seed), *further]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with (place / "output.txt").open("a") as output:
        code = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise SystemExit(f"{place / 'output.txt'}: the run ended with {code}: {' '.join(command)}")
    run = max(place.glob("[0-9]*-*"))
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def spread(values: list[float]) -> str:
    """Write mean and sample deviation."""
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", type=Path, nargs="?", default=Path("configs/segmentation_demo.toml"))
    parser.add_argument("--seeds", default="0,1,2", help="separated by commas (default: 0,1,2)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--threads", type=int, help="of each run (default: the cores over the jobs)")
    parser.add_argument("--root", type=Path, default=Path("runs/context"), help="folder (default: runs/context)")
    options, further = parser.parse_known_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    threads = options.threads or max((os.cpu_count() or 1) // options.jobs, 1)

    cases = [(context, seed) for seed in seeds for context in CONTEXTS]
    stopped = threading.Event()

    def run(case: tuple[str, int]) -> dict[str, float] | None:
        if stopped.is_set():  # those behind one that was stopped do not begin
            return None
        try:
            return train(options.preset, options.root, *case, threads, further)
        except BaseException:
            stopped.set()
            raise

    with ThreadPoolExecutor(options.jobs) as pool:
        found = {case: row for case, row in zip(cases, pool.map(run, cases), strict=True) if row is not None}

    print(
        f"| head | parameters | G mult-adds | {' | '.join(f'seed {seed}' for seed in seeds)} | mIoU | pixel accuracy |"
    )
    print("|---" * (5 + len(seeds)) + "|")
    for context in CONTEXTS:
        config = load_config(options.preset, ["--model.ham", context, *further])
        network, side = shapes_of(config.model), config.augment.crop
        work = count_multiply_adds(network, side, side).total / 1e9
        mious = [100 * found[context, seed]["miou"] for seed in seeds]
        accuracies = [100 * found[context, seed]["test_pixel_accuracy"] for seed in seeds]
        cells = [context, f"{count_parameters(network):,}", f"{work:.3f}", *(f"{miou:.2f}" for miou in mious)]
        print(f"| {' | '.join([*cells, spread(mious), spread(accuracies)])} |")
    gains = [100 * (found["NMF", seed]["miou"] - found["identity", seed]["miou"]) for seed in seeds]
    error = f" ± {statistics.stdev(gains) / len(gains) ** 0.5:.2f} (standard error)" if len(gains) > 1 else ""
    print(f"\nNMF - identity at the same seed: {statistics.mean(gains):+.2f}{error}")


if __name__ == "__main__":
    main()

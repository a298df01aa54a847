"""What does one power iteration an optimiser step save, against one at every training forward, and what does sigma lose?

The emoji32 preset's networks on random images, in float32, with two micro-batches a step; both ways take turns. Afterwards each
layer's estimate is held against its largest singular value: |estimate / exact - 1|, mean and largest over the layers.

Run: python benchmarks/power_iteration.py [--steps N]
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from hamgan.nn.spectral_norm import spectral_sigmas
from hamgan.training.config import load_config
from hamgan.training.trial import trial_step

PRESET = Path(__file__).parents[1] / "configs" / "emoji32.toml"
WAYS = ("forward", "step")


def errors(network: nn.Module) -> list[float]:
    """Return how far each layer's estimate is from its largest singular value, relative."""
    weights = dict(network.named_parameters())
    found = []
    for name, estimate in spectral_sigmas(network).items():
        exact = torch.linalg.matrix_norm(weights[f"{name}.weight"].detach().flatten(1), 2)
        found.append(abs(float(estimate / exact) - 1))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    config = load_config(PRESET, ["--precision=fp32", "--micro_batch=16", "--device=cpu"])
    trials = {
        way: trial_step(replace(config, objective=replace(config.objective, power_iterations=way)), torch.device("cpu"))
        for way in WAYS
    }
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.steps):
        for way, trial in trials.items():
            start = time.perf_counter()
            trial()
            times[way].append(time.perf_counter() - start)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians of {options.steps} steps")
    print("\n| power iteration at every | ms a step | of forward's | error of sigma, G | D |\n|---|---|---|---|---|")
    medians = {way: statistics.median(values) for way, values in times.items()}
    for way, trial in trials.items():
        cells = [
            f"{statistics.mean(found):.4f}, at most {max(found):.4f}"
            for found in map(errors, (trial.G.network, trial.D.network))
        ]
        print(
            f"| {way} | {medians[way] * 1e3:.0f} | {medians[way] / medians['forward']:.3f} | {cells[0]} | {cells[1]} |"
        )


if __name__ == "__main__":
    main()

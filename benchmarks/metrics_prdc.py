"""How much memory and time do precision, recall, density and coverage take at 10k x 10k?

Run: python benchmarks/metrics_prdc.py [--images 10000] [--dim 2048]
"""

import argparse
import resource
import time

import numpy as np

from hamgan.metrics import prdc

QUICK = ["--images", "5000"]


def features(count: int, dim: int, seed: int) -> np.ndarray:
    """Non-negative float32 features, made in blocks so that making them does not set the peak."""
    rng = np.random.default_rng(seed)
    out = np.empty((count, dim), np.float32)
    for start in range(0, count, 500):
        out[start : start + 500] = np.abs(rng.standard_normal((min(500, count - start), dim), np.float32))
    return out


def peak() -> float:
    """Return the process's largest resident size so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=2048)
    options = parser.parse_args()
    real, fake = (features(options.images, options.dim, seed) for seed in (0, 1))
    before = peak()
    start = time.perf_counter()
    result = prdc(real, fake)
    seconds = time.perf_counter() - start
    dense = 3 * options.images**2 * 8 / 1e9
    print(result)
    print(
        f"{options.images} x {options.images}, d = {options.dim}: {seconds:.1f} s; peak {peak():.2f} GB, of which "
        f"{before:.2f} GB were there before (program and features); three dense matrices alone take {dense:.1f} GB"
    )


if __name__ == "__main__":
    main()

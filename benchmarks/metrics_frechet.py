"""How fast and how exact is the Frechet distance at Inception's width, against the usual ways to compute it?

Run: python benchmarks/metrics_frechet.py [--dim 2048] [--samples 6000] [--rounds 3]
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import scipy.linalg

from hamgan.metrics import FrechetReference, Moments

QUICK = ["--dim", "1024", "--samples", "3000"]


def gaussian(dim: int, samples: int, seed: int) -> Moments:
    """Moments as a sample would give them: a Wishart covariance with a spectrum over four decades."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(dim, dim)) / np.sqrt(dim) * np.geomspace(1, 1e-2, dim)
    x = rng.normal(size=(samples, dim)) @ mixing
    return Moments(np.abs(x.mean(axis=0)) + 0.4, np.cov(x, rowvar=False), samples)


def seconds_of(function: Callable[[], float]) -> tuple[float, float]:
    """Return the time of one call in seconds, and the value."""
    start = time.perf_counter()
    value = function()
    return time.perf_counter() - start, value


def by_square_root(a: Moments, b: Moments) -> float:
    """pytorch-fid's way."""
    root = scipy.linalg.sqrtm(a.sigma @ b.sigma)
    difference = a.mu - b.mu
    return float(difference @ difference + np.trace(a.sigma) + np.trace(b.sigma) - 2 * np.trace(root.real))


def by_eigenvalues(a: Moments, b: Moments) -> float:
    """torch-fidelity's way."""
    values = np.linalg.eigvals(a.sigma @ b.sigma).astype(complex)
    difference = a.mu - b.mu
    return float(difference @ difference + np.trace(a.sigma) + np.trace(b.sigma) - 2 * np.sqrt(values).real.sum())


def main() -> None:
    """Print times, ratios and differences: all ways in turn, several rounds, so that a slow minute hits all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--samples", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    a, b = (gaussian(options.dim, options.samples, seed) for seed in (1, 2))
    reference = FrechetReference(b)
    ways: dict[str, Callable[[], float]] = {
        "ours, factoring the reference": lambda: FrechetReference(b).distance(a),
        "ours, reference factored before": lambda: reference.distance(a),
        "scipy sqrtm": lambda: by_square_root(a, b),
        "numpy eigvals": lambda: by_eigenvalues(a, b),
    }
    rounds = [{name: seconds_of(way) for name, way in ways.items()} for _ in range(options.rounds)]
    ours = next(iter(ways))
    value = rounds[0][ours][1]
    fastest = {name: min(measured[name][0] for measured in rounds) for name in ways}
    print(
        f"d = {options.dim}, {options.samples} samples, distance {value:.8g}; the shortest of {options.rounds} rounds"
    )
    for name in ways:
        line = f"{name:34}{fastest[name]:8.2f} s"
        if not name.startswith("ours"):
            single = [measured[name][0] / measured[ours][0] for measured in rounds]
            line += (
                f"   {fastest[name] / fastest[ours]:5.1f} x ours (single rounds {min(single):.1f} to {max(single):.1f})"
            )
            line += f"   differs by {abs(rounds[0][name][1] / value - 1):.1e}"
        print(line)


if __name__ == "__main__":
    main()

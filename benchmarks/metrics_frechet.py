"""How fast and how exact is the Frechet distance at Inception's width, against the usual ways to compute it?

Run: python benchmarks/metrics_frechet.py [--dim 2048] [--samples 50000]
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


def best(function: Callable[[], float], repeats: int) -> tuple[float, float]:
    """Return the shortest time in seconds and the value."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        value = function()
        times.append(time.perf_counter() - start)
    return min(times), value


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
    """Print times, ratios and differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--samples", type=int, default=6000)
    options = parser.parse_args()
    a, b = (gaussian(options.dim, options.samples, seed) for seed in (1, 2))
    reference = FrechetReference(b)
    ours, value = best(lambda: FrechetReference(b).distance(a), 3)
    again, _ = best(lambda: reference.distance(a), 3)
    print(f"d = {options.dim}, {options.samples} samples, distance {value:.8g}")
    print(f"{'ours, factoring the reference':34}{ours:8.2f} s")
    print(f"{'ours, reference factored before':34}{again:8.2f} s")
    for name, function in (("scipy sqrtm", by_square_root), ("numpy eigvals", by_eigenvalues)):
        seconds, other = best(lambda function=function: function(a, b), 1)
        print(f"{name:34}{seconds:8.2f} s   {seconds / ours:5.1f} x ours   differs by {abs(other / value - 1):.1e}")


if __name__ == "__main__":
    main()

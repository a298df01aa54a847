"""Kernel distance: the unbiased squared maximum mean discrepancy under a cubic kernel (KID)."""

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from hamgan.metrics.scores import SubsetScore
from hamgan.metrics.stats import FloatArray, as_features

_BLOCK = 2048  # rows of a kernel matrix held at once


def kernel_distance(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> float:
    """Compute the unbiased squared MMD between all samples, with k(x, y) = (x.y / d + 1)^3.

    Unbiased for any sample count (hence slightly negative when the distributions agree), unlike a Frechet
    distance: the number to read when there are fewer samples than features. Kernel matrices are summed by
    blocks, in float64; memory does not grow with N M.

    Args:
        a: Features, (N, d).
        b: Features, (M, d).

    Returns:
        The squared MMD; often quoted times 1000.

    Raises:
        ValueError: If widths differ, a value is not finite, or a side has fewer than 2 samples.

    Source: Binkowski et al. 2018, section 3; Gretton et al. 2012, eq. 3.
    """
    x, y = _checked(a, b)
    n, m = len(x), len(y)
    within = _off_diagonal_sum(x) / (n * (n - 1)) + _off_diagonal_sum(y) / (m * (m - 1))
    return within - 2 * _sum(x, y) / (n * m)


def kernel_distance_jackknife(
    a: ArrayLike | Tensor, b: ArrayLike | Tensor, *, num_groups: int = 10, seed: int = 2020
) -> tuple[float, float]:
    """Compute `kernel_distance` and its standard error from leaving out groups of the first sample.

    Args:
        a: Features of the generated images, (N, d).
        b: Features of the real images, (M, d); held fixed, as a reference is.
        num_groups: Groups of equal size.
        seed: Of their random choice.

    Returns:
        The distance and its standard error.

    Raises:
        ValueError: As `kernel_distance`; also if there are fewer than 2 groups, or 2 samples for each.

    Source: Efron & Stein 1981; the sums between groups give every left-out estimate from one pass.
    """
    x, y = _checked(a, b)
    if num_groups < 2 or len(x) < 2 * num_groups:
        raise ValueError(f"n = {len(x)}, num_groups = {num_groups}: expected 2 samples for each of 2 groups or more")
    groups = np.array_split(np.random.RandomState(seed).permutation(len(x)), num_groups)
    sizes = np.array([len(group) for group in groups])
    within, across = np.zeros((num_groups, num_groups)), np.zeros(num_groups)
    for i, own in enumerate(groups):
        within[i, i] = _off_diagonal_sum(x[own])
        across[i] = _sum(x[own], y)
        for j in range(i):
            within[i, j] = within[j, i] = _sum(x[own], x[groups[j]])
    real = _off_diagonal_sum(y) / (len(y) * (len(y) - 1))

    def estimate(total: float, cross: float, n: int) -> float:
        return total / (n * (n - 1)) + real - 2 * cross / (n * len(y))

    value = estimate(within.sum(), across.sum(), len(x))
    touching = 2 * within.sum(axis=1) - within.diagonal()
    left = np.array(
        [estimate(within.sum() - touching[i], across.sum() - across[i], len(x) - sizes[i]) for i in range(num_groups)]
    )
    variance = (num_groups - 1) / num_groups * ((left - left.mean()) ** 2).sum()
    return float(value), float(np.sqrt(variance))


def kernel_distance_subsets(
    a: ArrayLike | Tensor,
    b: ArrayLike | Tensor,
    *,
    subset_size: int = 1000,
    num_subsets: int = 100,
    seed: int = 2020,
) -> SubsetScore:
    """Compute KID as torch-fidelity reports it: over random subsets, drawn without replacement.

    Args:
        a: Features of the generated images, (N, d).
        b: Features of the real images, (M, d).
        subset_size: Samples of each side in a subset; at most min(N, M).
        num_subsets: Number of subsets.
        seed: Of numpy's RandomState.

    Returns:
        Mean and deviation over the subsets. The deviation is of one subset's value, not of the mean.

    Raises:
        ValueError: As `kernel_distance`; also if a side has fewer than subset_size samples.
    """
    x, y = _checked(a, b)
    if not 2 <= subset_size <= min(len(x), len(y)):
        raise ValueError(f"subset_size = {subset_size}: expected 2..{min(len(x), len(y))}, the smaller side")
    random = np.random.RandomState(seed)
    values = []
    for _ in range(num_subsets):
        left = x[random.choice(len(x), subset_size, replace=False)]
        right = y[random.choice(len(y), subset_size, replace=False)]
        values.append(kernel_distance(left, right))
    return SubsetScore(float(np.mean(values)), float(np.std(values)))


def _checked(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> tuple[FloatArray, FloatArray]:
    x, y = as_features(a).astype(np.float64), as_features(b).astype(np.float64)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features: widths {x.shape[1]} and {y.shape[1]} differ")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"n = {min(len(x), len(y))}: a kernel distance needs at least 2 samples")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features contain NaN or infinity")
    return x, y


def _kernel(x: FloatArray, y: FloatArray) -> FloatArray:
    base = x @ y.T
    base /= x.shape[1]
    base += 1
    return base * base * base  # ** 3 calls pow, ten times slower


def _sum(x: FloatArray, y: FloatArray) -> float:
    parts = (_kernel(x[i : i + _BLOCK], y[j : j + _BLOCK]).sum() for i, j in _blocks(len(x), len(y)))
    return float(sum(parts))


def _off_diagonal_sum(x: FloatArray) -> float:
    # The kernel is symmetric: blocks above the diagonal count twice.
    total = 0.0
    for i, j in _blocks(len(x), len(x)):
        if i > j:
            continue
        part = _kernel(x[i : i + _BLOCK], x[j : j + _BLOCK])
        total += part.sum() - part.trace() if i == j else 2 * part.sum()
    return float(total)


def _blocks(n: int, m: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(0, n, _BLOCK) for j in range(0, m, _BLOCK)]

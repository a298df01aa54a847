"""Precision, recall, density and coverage: fidelity and diversity apart, from nearest-neighbour balls."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hamgan.metrics.extractors.base import exact_float32
from hamgan.metrics.neighbours import PointSet, kth_neighbour, memberships
from hamgan.metrics.stats import as_features


@dataclass(frozen=True)
class Prdc:
    """The four numbers with their standard errors over the samples, the manifold held fixed.

    Attributes:
        precision: Share of generated samples inside the real manifold, 0..1.
        recall: Share of real samples inside the generated manifold, 0..1.
        density: Mean number of real balls around a generated sample, over k; about 1 for equal distributions.
        coverage: Share of real balls that hold a generated sample, 0..1.
        precision_error: Standard error of precision; likewise the other three.
        recall_error: See precision_error.
        density_error: See precision_error.
        coverage_error: See precision_error.
        k: Neighbour that sets a ball's radius.
        num_real: Real samples.
        num_fake: Generated samples.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    precision_error: float
    recall_error: float
    density_error: float
    coverage_error: float
    k: int
    num_real: int
    num_fake: int


def prdc(
    real: ArrayLike | Tensor,
    fake: ArrayLike | Tensor,
    k: int = 5,
    *,
    inclusive: bool = False,
    device: torch.device | str = "cpu",
) -> Prdc:
    """Compute precision, recall, density and coverage.

    The numbers depend on both sample counts: compare only equal ones.

    Args:
        real: Features, (N, d).
        fake: Features, (M, d).
        k: Neighbour that sets a ball's radius.
        inclusive: Count the balls' surface as inside, as StyleGAN does (with k = 3).
        device: Where the matrix products run; at most a block of 512 x max(N, M) is held.

    Returns:
        The four numbers and their errors.

    Raises:
        ValueError: If widths differ, values are not finite, or a side has k samples or fewer.

    Source: Kynkaanniemi et al. 2019, eq. 1-2; Naeem et al. 2020, eq. 4-6.
    """
    x, y = as_features(real), as_features(fake)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features: widths {x.shape[1]} and {y.shape[1]} differ")
    if not 1 <= k < min(len(x), len(y)):
        raise ValueError(f"k = {k}: expected 1..{min(len(x), len(y)) - 1}, fewer than the samples of a side")
    if x.dtype != y.dtype:  # copies are recognised by their bytes
        x, y = x.astype(np.float64), y.astype(np.float64)
    centre = x.mean(axis=0, dtype=np.float64)
    reals, fakes = (PointSet(points, centre=centre, device=device) for points in (x, y))
    with exact_float32(torch.device(device)):
        real_radius, _ = kth_neighbour(reals, reals, k)
        # Collapsed samples lie close together far from the real mean: their own is the better centre.
        own = fakes.recentred(y.mean(axis=0, dtype=np.float64))
        fake_radius, _ = kth_neighbour(own, own, k)
        del own
        balls = np.zeros(len(fakes))  # real balls around each generated sample
        covered = np.zeros(len(reals), bool)
        for rows, inside in memberships(fakes, reals, real_radius, inclusive=inclusive):
            balls[rows] = inside @ reals.counts
            covered |= inside.any(axis=0)
        recalled = np.zeros(len(reals), bool)
        for rows, inside in memberships(reals, fakes, fake_radius, inclusive=inclusive):
            recalled[rows] = inside.any(axis=1)
    precision, precision_error = _mean(balls > 0, fakes.counts)
    recall, recall_error = _mean(recalled, reals.counts)
    density, density_error = _mean(balls, fakes.counts)
    coverage, coverage_error = _mean(covered, reals.counts)
    return Prdc(
        precision=precision,
        recall=recall,
        density=density / k,
        coverage=coverage,
        precision_error=precision_error,
        recall_error=recall_error,
        density_error=density_error / k,
        coverage_error=coverage_error,
        k=k,
        num_real=reals.total,
        num_fake=fakes.total,
    )


def _mean(values: NDArray[np.generic], counts: NDArray[np.int64]) -> tuple[float, float]:
    # Mean over samples and its standard error, which is what a bootstrap over the samples converges to.
    x = values.astype(np.float64)
    total = counts.sum()
    mean = (x * counts).sum() / total
    return float(mean), float(np.sqrt(((x - mean) ** 2 * counts).sum() / total / total))

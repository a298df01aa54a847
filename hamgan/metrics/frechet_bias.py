"""What a finite sample does to a Frechet distance: its bias, its error, and the limit of infinitely many samples."""

import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from hamgan.metrics.frechet import FrechetReference
from hamgan.metrics.stats import FeatureStats, as_features


@dataclass(frozen=True)
class FrechetCurve:
    """Distances of nested samples, and their extrapolation.

    Attributes:
        sizes: Sample counts, ascending.
        values: The distance at each.
        limit: Intercept of the least-squares line through the values over 1 / size.
    """

    sizes: tuple[int, ...]
    values: tuple[float, ...]
    limit: float


def frechet_infinity(
    features: ArrayLike | Tensor, reference: FrechetReference, *, num_points: int = 15, seed: int = 2020
) -> FrechetCurve:
    """Extrapolate the distance to infinitely many generated samples (FID-infinity).

    The bias of a Frechet distance falls as 1 / N, with a slope that depends on the generator: two generators cannot be
    ranked at a small N, but their limits can. The sizes are nested parts of one shuffled sample, from a tenth of it
    (but from d + 1 where that leaves half the range) to all of it.

    Args:
        features: Of the generated images, (N, d).
        reference: Factored once for all points.
        num_points: Sizes on the curve.
        seed: Of the shuffle.

    Returns:
        The curve and its limit. The reference's own finite size is not corrected.

    Raises:
        ValueError: If there are fewer than 10 samples or points are fewer than 2.

    Source: Chong & Forsyth 2020, section 3.
    """
    x = as_features(features)
    n, d = x.shape
    if n < 10 or num_points < 2:
        raise ValueError(f"n = {n}, num_points = {num_points}: the limit needs at least 10 samples and 2 points")
    smallest = max(n // 10, min(d + 1, n // 2), 2)
    sizes = sorted({round(size) for size in np.linspace(smallest, n, num_points)})
    order = np.random.RandomState(seed).permutation(n)
    stats, values, start = FeatureStats(d), [], 0
    for size in sizes:
        stats.update(x[order[start:size]])
        values.append(reference.distance(stats.moments()))
        start = size
    _, limit = np.polyfit(1 / np.array(sizes), values, 1)
    return FrechetCurve(tuple(sizes), tuple(values), float(limit))


@dataclass(frozen=True)
class FrechetError:
    """What the delete-a-group jackknife says of a distance.

    Attributes:
        error: Standard error, from the generated sample alone.
        bias: Expected excess over the limit of infinitely many generated samples.
    """

    error: float
    bias: float


def frechet_jackknife(
    features: ArrayLike | Tensor, reference: FrechetReference, *, num_groups: int = 10, seed: int = 2020
) -> FrechetError:
    """Estimate standard error and bias of a Frechet distance by leaving out groups of the generated sample.

    A bootstrap would draw duplicates, and a covariance with duplicates has a bias of its own that is as large as what
    is to be measured; leaving out has none, and costs one eigenproblem a group. The error is conservative: right where
    N is many times d, up to a third too large at N = 25 d.

    Args:
        features: Of the generated images, (N, d).
        reference: Factored once for all groups.
        num_groups: Groups of equal size.
        seed: Of their random choice.

    Returns:
        Error and bias.

    Raises:
        ValueError: If there are fewer than 2 samples a group, or fewer than 2 groups.

    Source: Efron & Stein 1981; Kunsch 1989 for groups.
    """
    x = as_features(features)
    if num_groups < 2 or len(x) < 2 * num_groups:
        raise ValueError(f"n = {len(x)}, num_groups = {num_groups}: expected 2 samples for each of 2 groups or more")
    order = np.random.RandomState(seed).permutation(len(x))
    groups = [FeatureStats.from_features(x[part]) for part in np.array_split(order, num_groups)]
    whole = FeatureStats(x.shape[1])
    for group in groups:
        whole.merge(group)
    left = []
    for group in groups:
        rest = copy.deepcopy(whole)
        rest.remove(group)
        left.append(reference.distance(rest.moments()))
    values = np.array(left)
    scale = num_groups - 1
    error = np.sqrt(scale / num_groups * ((values - values.mean()) ** 2).sum())
    return FrechetError(float(error), float(scale * (values.mean() - reference.distance(whole.moments()))))

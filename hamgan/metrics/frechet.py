"""Frechet distance between Gaussians fitted to features, by symmetric eigenproblems in float64."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from hamgan.metrics.stats import FeatureStats, FloatArray, Moments, as_features


class FrechetReference:
    """A reference whose covariance is factored once, for many distances to it.

    With S = F F', the trace of sqrt(S T) is that of sqrt(F' T F), a symmetric matrix: no complex numbers, no
    regularisation, and one eigvalsh a distance instead of a general matrix square root.

    Args:
        reference: Its moments.

    Raises:
        ValueError: If sigma has clearly negative eigenvalues.

    Source: Dowson & Landau 1982, eq. 4; Heusel et al. 2017 (FID).
    """

    def __init__(self, reference: Moments) -> None:
        self.mu = reference.mu
        self.n = reference.n
        self.trace = float(np.trace(reference.sigma))
        self._factor = _factor(reference)

    def distance(self, other: Moments) -> float:
        """Compute the Frechet distance to other moments.

        Returns:
            The squared distance, as FID is defined; about -1e-11 for equal moments, never clamped here.

        Raises:
            ValueError: If the widths differ.
        """
        if len(other.mu) != len(self.mu):
            raise ValueError(f"features: width {len(other.mu)}, the reference has {len(self.mu)}")
        sigma = torch.from_numpy(other.sigma)
        product = self._factor.T @ sigma @ self._factor
        values = torch.linalg.eigvalsh((product + product.T) / 2)
        keep = _rank(values, other.n)
        trace_sqrt = float(values[len(values) - keep :].sqrt().sum())
        difference = other.mu - self.mu
        return float(difference @ difference) + float(sigma.trace()) + self.trace - 2 * trace_sqrt


def _factor(moments: Moments) -> Tensor:
    # F with F F' = sigma, (d, rank). Cholesky's is ten times faster than eigh's, and its graded columns keep small
    # eigenvalues of F' T F exact that lie far below the largest; only a singular sigma needs eigh.
    sigma = torch.from_numpy(moments.sigma)
    if moments.n is None or moments.n > len(sigma):
        factor, failed = torch.linalg.cholesky_ex(sigma)
        if not int(failed):
            return factor
    values, vectors = torch.linalg.eigh(sigma)
    if len(values) and float(values[0]) < -1e-4 * max(float(values[-1]), 0.0):  # rounding leaves -1e-7 even in float32
        raise ValueError(f"sigma is no covariance, its smallest eigenvalue is {float(values[0]):.4g}")
    keep = _rank(values, moments.n)
    return vectors[:, len(values) - keep :] * values[len(values) - keep :].sqrt()


def _rank(values: Tensor, n: int | None) -> int:
    # Of ascending eigenvalues, count those to keep. A covariance of n samples has rank n - 1 at most; the rest is
    # noise of 1e-16, whose square root of 1e-8, summed over a thousand of them, would be seen.
    positive = int((values > 0).sum())
    return positive if n is None else min(positive, n - 1)


Sample = FeatureStats | Moments | ArrayLike | Tensor


def frechet_distance(a: Sample, b: Sample) -> float:
    """Compute the (squared) Frechet distance between two sets of features.

    With Inception's pool3 features this is FID; with any other extractor it is named after that one.

    Args:
        a: Moments, or features (N, d).
        b: Moments, or features (M, d).

    Returns:
        |mu_a - mu_b|^2 + tr(S_a + S_b - 2 sqrt(S_a S_b)); never clamped, so about -1e-11 for equal inputs.

    Raises:
        ValueError: If widths differ, a value is not finite, or a side has fewer than 2 samples.

    Source: Heusel et al. 2017, eq. 6.
    """
    if not isinstance(a, FeatureStats | Moments) and not isinstance(b, FeatureStats | Moments):
        x, y = as_features(a), as_features(b)
        if max(len(x), len(y)) <= x.shape[1]:
            return frechet_distance_few(x, y)
    return FrechetReference(_moments(b)).distance(_moments(a))


def _moments(sample: Sample) -> Moments:
    if isinstance(sample, Moments):
        return sample
    stats = sample if isinstance(sample, FeatureStats) else FeatureStats.from_features(sample)
    return stats.moments()


def frechet_distance_few(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> float:
    """Compute the Frechet distance from few features, without any d x d matrix.

    With A = (X - mean) / sqrt(N - 1), so that S_a = A' A, the trace of sqrt(S_a S_b) is the nuclear norm of
    A B', an N x M matrix. Exact also for N < d, where covariances are singular.

    Args:
        a: Features, (N, d).
        b: Features, (M, d).

    Returns:
        As `frechet_distance`.

    Raises:
        ValueError: As `frechet_distance`.
    """
    x, y = _centred(a), _centred(b)
    if x[0].shape != y[0].shape:
        raise ValueError(f"features: widths {len(x[0])} and {len(y[0])} differ")
    nuclear = float(torch.linalg.svdvals(torch.from_numpy(x[1] @ y[1].T)).sum())
    difference = x[0] - y[0]
    spread = float((x[1] ** 2).sum() + (y[1] ** 2).sum())
    return float(difference @ difference) + spread - 2 * nuclear


def _centred(features: ArrayLike | Tensor) -> tuple[FloatArray, FloatArray]:
    x = as_features(features).astype(np.float64)
    if len(x) < 2:
        raise ValueError(f"n = {len(x)}: a covariance needs at least 2 samples")
    if not np.isfinite(x).all():
        raise ValueError("features contain NaN or infinity")
    mean = x.mean(axis=0)
    return mean, (x - mean) / np.sqrt(len(x) - 1)

"""Synthetic features and oracles shared by the metric tests."""

from collections.abc import Callable

import numpy as np
import pytest
from metric_samples import make_tiny_extractor
from numpy.typing import NDArray

from hamgan.metrics.extractors import Extractor


def correlated_features(n: int, d: int, *, seed: int, shift: float = 0.0) -> NDArray[np.float32]:
    """Non-negative features with a wide spectrum and a large mean, as pooled activations have, (n, d)."""
    mixing = np.random.default_rng(99).normal(size=(d, d)) / np.sqrt(d) * np.geomspace(1, 1e-2, d)
    noise = np.random.default_rng(seed).normal(size=(n, d))
    return (np.abs(noise @ mixing) + 3 + shift).astype(np.float32)


@pytest.fixture(scope="session")
def features() -> Callable[..., NDArray[np.float32]]:
    """Make features: features(n, d, seed=..., shift=...)."""
    return correlated_features


@pytest.fixture
def pytorch_fid_distance(monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """pytorch-fid's own function on features, also where SciPy has dropped sqrtm's `disp`."""
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    sqrtm = fid_score.linalg.sqrtm
    monkeypatch.setattr(fid_score.linalg, "sqrtm", lambda matrix, disp=True: (sqrtm(matrix), 0.0))

    def distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
        a, b = a.astype(np.float64), b.astype(np.float64)
        moments = (a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
        return float(fid_score.calculate_frechet_distance(*moments))

    return distance


@pytest.fixture
def tiny() -> Extractor:
    return make_tiny_extractor()

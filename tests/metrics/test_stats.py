"""Streamed moments: exact, mergeable, and stable where raw sums are not."""

import numpy as np
import pytest
import torch

from hamgan.metrics import FeatureStats
from hamgan.metrics.stats import Moments


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_streaming_equals_numpy(features, batch):
    x = features(1000, 24, seed=1)
    stats = FeatureStats(24)
    for start in range(0, 1000, batch):
        stats.update(torch.from_numpy(x[start : start + batch]))
    assert stats.n == 1000
    np.testing.assert_allclose(stats.mu, x.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(stats.sigma, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-12)


def test_large_mean_keeps_the_covariance():
    x = np.random.default_rng(0).normal(size=(500, 4)) + 1e7
    stats = FeatureStats(4)
    for start in range(0, 500, 50):
        stats.update(x[start : start + 50])
    # Raw sums of squares would be off by about 1e14 * 1e-16 * 500 = 5 here.
    np.testing.assert_allclose(stats.sigma, np.cov(x, rowvar=False), atol=1e-6)


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_merging_shards_equals_one_pass(features, shards):
    x = features(1003, 24, seed=1)
    whole = FeatureStats.from_features(x)
    merged = FeatureStats(24)
    for part in np.array_split(x, shards):
        merged.merge(FeatureStats.from_features(part))
    merged.merge(FeatureStats(24))  # an empty share changes nothing
    assert merged.n == whole.n
    np.testing.assert_allclose(merged.mu, whole.mu, rtol=1e-11)
    np.testing.assert_allclose(merged.sigma, whole.sigma, rtol=1e-9, atol=1e-12)


def test_moments_return_and_can_be_continued(features):
    x = features(600, 12, seed=1)
    first = FeatureStats.from_features(x[:400])
    again = FeatureStats.from_moments(first.moments())
    again.update(x[400:])
    np.testing.assert_allclose(again.sigma, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-12)


def test_bad_input():
    stats = FeatureStats(4)
    with pytest.raises(ValueError, match="at least 2"):
        _ = stats.sigma
    with pytest.raises(ValueError, match="width 5, expected 4"):
        stats.update(np.ones((2, 5)))
    with pytest.raises(ValueError, match="NaN"):
        stats.update(np.full((2, 4), np.inf))
    with pytest.raises(ValueError, match="width"):
        stats.merge(FeatureStats(5))
    with pytest.raises(ValueError, match="expected \\(d,\\) and \\(d, d\\)"):
        Moments(np.zeros(4), np.zeros((4, 3)), 10)
    with pytest.raises(ValueError, match="n is unknown"):
        FeatureStats.from_moments(Moments(np.zeros(4), np.eye(4), None))
    with pytest.raises(ValueError, match="dim = 0"):
        FeatureStats(0)
    assert stats.n == 0  # nothing bad was added

"""Bias, error and limit of a Frechet distance, on Gaussians whose distances are known."""

import numpy as np
import pytest
import torch

from hamgan.metrics import FrechetReference, Moments, frechet_infinity, frechet_jackknife
from hamgan.metrics.stats import FeatureStats

D = 24
REFERENCE = FrechetReference(Moments(np.zeros(D), np.eye(D), 10**6))
TRUE = D * 0.1**2  # from N(0, 1.1^2 I) to N(0, I)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    # A thousand eigenproblems of 24 x 24: on busy cores threads would wait for each other a hundred times as long.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trials():
    rng = np.random.default_rng(0)
    samples = [rng.normal(size=(1500, D)) * 1.1 for _ in range(40)]
    values = [REFERENCE.distance(FeatureStats.from_features(x).moments()) for x in samples]
    return samples, np.array(values)


def test_limit_removes_the_bias(trials):
    samples, values = trials
    limits = np.array([frechet_infinity(x, REFERENCE).limit for x in samples])
    assert values.mean() - TRUE > 0.1  # half the distance again
    assert limits.mean() == pytest.approx(TRUE, abs=0.03)


def test_jackknife_knows_error_and_bias(trials):
    samples, values = trials
    results = [frechet_jackknife(x, REFERENCE) for x in samples]
    assert np.mean([r.error for r in results]) == pytest.approx(values.std(), rel=0.35)
    assert np.mean([r.bias for r in results]) == pytest.approx(values.mean() - TRUE, rel=0.2)


def test_curve_ends_at_the_whole_sample(trials):
    samples, values = trials
    curve = frechet_infinity(samples[0], REFERENCE, num_points=5)
    assert curve.sizes[0] == 150
    assert curve.sizes[-1] == 1500
    assert curve.values[-1] == pytest.approx(values[0], rel=1e-9)
    assert all(a > b for a, b in zip(curve.values, curve.values[1:]))


def test_bad_input():
    with pytest.raises(ValueError, match="at least 10 samples"):
        frechet_infinity(np.ones((9, D)), REFERENCE)
    with pytest.raises(ValueError, match="2 samples for each"):
        frechet_jackknife(np.ones((19, D)), REFERENCE)

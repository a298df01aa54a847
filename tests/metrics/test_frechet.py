"""The Frechet distance against pytorch-fid, known answers and bad input."""

import numpy as np
import pytest

from hamgan.metrics import FeatureStats, FrechetReference, frechet_distance
from hamgan.metrics.frechet import frechet_distance_few
from hamgan.metrics.stats import Moments


def test_equals_pytorch_fid_with_more_samples_than_features(features, pytorch_fid_distance):
    a, b = features(3000, 64, seed=1), features(2500, 64, seed=2, shift=0.1)
    expected = pytorch_fid_distance(a, b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_equals_pytorch_fid_with_fewer_samples_than_features(features, pytorch_fid_distance):
    a, b = features(120, 200, seed=1), features(150, 200, seed=2, shift=0.1)
    expected = pytorch_fid_distance(a, b)
    assert frechet_distance_few(a, b) == pytest.approx(expected, rel=1e-5)
    stats = FeatureStats.from_features(a), FeatureStats.from_features(b)
    # The two own ways share no step after the features, and agree far better than the oracle with itself.
    assert frechet_distance(*stats) == pytest.approx(frechet_distance_few(a, b), rel=1e-9)


def test_known_answer_of_a_linear_map():
    rng = np.random.default_rng(0)
    d = 40
    root = rng.normal(size=(d, d))
    sigma = root @ root.T
    half = rng.normal(size=(d, d))
    t = half @ half.T / d + np.eye(d)  # the optimal map of N(0, S) to N(m, T S T) is T, if T is positive
    mu = rng.normal(size=d)
    a = Moments(np.zeros(d), sigma, 1000)
    b = Moments(mu, t @ sigma @ t, 1000)
    expected = mu @ mu + np.trace(sigma) + np.trace(t @ sigma @ t) - 2 * np.trace(t @ sigma)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_a_wide_spectrum_keeps_its_small_directions():
    # Eigenvalues of the product spread over 16 decades: a threshold on them would cut true ones off.
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(96, 96)) / np.sqrt(96) * np.geomspace(1, 1e-4, 96)
    a, b = (rng.normal(size=(n, 96)) @ mixing for n in (400, 500))
    exact = frechet_distance_few(a, b)  # singular values, no square root of an eigenvalue
    stats = FeatureStats.from_features(a), FeatureStats.from_features(b)
    assert frechet_distance(*stats) == pytest.approx(exact, rel=1e-10)


def test_singular_covariances_of_unknown_sample_count():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(30, 50)), rng.normal(size=(40, 50))
    moments = [Moments(x.mean(0), np.cov(x, rowvar=False), None) for x in (a, b)]
    assert frechet_distance(*moments) == pytest.approx(frechet_distance_few(a, b), rel=1e-6)


def test_distance_to_itself_is_rounding(features):
    for n, d in ((500, 32), (40, 64)):
        stats = FeatureStats.from_features(features(n, d, seed=1))
        assert abs(frechet_distance(stats, stats)) < 1e-9 * np.trace(stats.sigma)


def test_a_shift_of_the_mean_adds_its_square(features):
    a = features(300, 16, seed=1).astype(np.float64)
    assert frechet_distance(a, a + 2.0) == pytest.approx(16 * 4.0, rel=1e-9)


def test_constant_features_have_the_distance_of_their_means():
    a, b = np.zeros((50, 8)), np.ones((60, 8))
    assert frechet_distance(a, b) == pytest.approx(8.0)
    assert frechet_distance(a[:4], b[:5]) == pytest.approx(8.0)


def test_factored_reference_serves_many(features):
    reference = FrechetReference(FeatureStats.from_features(features(400, 24, seed=1)).moments())
    for seed in (2, 3):
        other = features(300, 24, seed=seed, shift=0.05 * seed)
        expected = frechet_distance(features(400, 24, seed=1), other)
        assert reference.distance(FeatureStats.from_features(other).moments()) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("a", "message"),
    [
        (np.full((20, 8), np.nan), "NaN"),
        (np.ones((1, 8)), "at least 2"),
        (np.ones((20, 7)), "width"),
        (np.ones(8), "expected floating"),
        (np.ones((20, 8), np.int64), "expected floating"),
    ],
)
@pytest.mark.parametrize("count", [5, 500])
def test_bad_features_are_refused_in_one_line(a, message, count, features):
    with pytest.raises(ValueError, match=message) as error:
        frechet_distance(a, features(count, 8, seed=1))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_equals_pytorch_fid_at_inceptions_width(features, pytorch_fid_distance):
    a, b = features(4000, 2048, seed=1), features(3000, 2048, seed=2, shift=0.02)
    assert frechet_distance(a, b) == pytest.approx(pytorch_fid_distance(a, b), rel=1e-9)

"""The kernel distance against torch-fidelity, a dense double sum and known properties."""

import numpy as np
import pytest
import torch

from hamgan.metrics import kernel_distance, kernel_distance_jackknife, kernel_distance_subsets
from hamgan.metrics import kid as kid_module


def dense(x, y):
    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    n, m = len(x), len(y)
    kxx, kyy, kxy = kernel(x, x), kernel(y, y), kernel(x, y)
    within = (kxx.sum() - np.trace(kxx)) / (n * (n - 1)) + (kyy.sum() - np.trace(kyy)) / (m * (m - 1))
    return within - 2 * kxy.mean()


def test_subsets_equal_torch_fidelity(features):
    metric = pytest.importorskip("torch_fidelity.metric_kid")
    a = torch.from_numpy(features(700, 48, seed=1)).double()
    b = torch.from_numpy(features(500, 48, seed=2, shift=0.05)).double()
    oracle = metric.kid_features_to_metric(a, b, kid_subsets=20, kid_subset_size=200, rng_seed=2020, verbose=False)
    score = kernel_distance_subsets(a, b, num_subsets=20, subset_size=200)
    assert score.mean == pytest.approx(oracle["kernel_inception_distance_mean"], rel=1e-9)
    assert score.std == pytest.approx(oracle["kernel_inception_distance_std"], rel=1e-9)


@pytest.mark.parametrize("block", [16, 100, 4096])
def test_blocks_equal_the_dense_sum(features, monkeypatch, block):
    monkeypatch.setattr(kid_module, "_BLOCK", block)
    a, b = (
        features(130, 10, seed=1).astype(np.float64),
        features(97, 10, seed=2, shift=0.1).astype(np.float64),
    )
    assert kernel_distance(a, b) == pytest.approx(dense(a, b), rel=1e-10)


def test_is_unbiased_where_the_frechet_distance_is_not():
    rng = np.random.default_rng(0)
    values = [kernel_distance(rng.normal(size=(30, 64)), rng.normal(size=(30, 64))) for _ in range(200)]
    standard_error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * standard_error
    assert min(values) < 0 < max(values)


def test_bad_input():
    with pytest.raises(ValueError, match="widths 3 and 4"):
        kernel_distance(np.ones((5, 3)), np.ones((5, 4)))
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(np.ones((1, 3)), np.ones((5, 3)))
    with pytest.raises(ValueError, match="NaN"):
        kernel_distance(np.full((4, 3), np.nan), np.ones((5, 3)))
    with pytest.raises(ValueError, match=r"subset_size = 1000: expected 2\.\.5"):
        kernel_distance_subsets(np.ones((5, 3)), np.ones((9, 3)))


def test_jackknife_keeps_the_value_and_knows_its_error():
    rng = np.random.default_rng(1)
    real = rng.normal(size=(400, 8))
    results = [kernel_distance_jackknife(rng.normal(size=(150, 8)) * 1.2, real) for _ in range(60)]
    values = np.array([value for value, _ in results])
    fake = rng.normal(size=(150, 8)) * 1.2
    assert kernel_distance_jackknife(fake, real)[0] == pytest.approx(kernel_distance(fake, real), rel=1e-10)
    assert np.mean([error for _, error in results]) == pytest.approx(values.std(), rel=0.35)

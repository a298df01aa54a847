"""The Inception Score against torch-fidelity, known answers, and any way of cutting the stream."""

import numpy as np
import pytest
import torch

from hamgan.metrics import InceptionScore


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(scale=3, size=(503, 20)).astype(np.float32)


@pytest.mark.parametrize(("splits", "shuffle"), [(10, True), (1, True), (7, False)])
def test_equals_torch_fidelity(logits, splits, shuffle):
    metric = pytest.importorskip("torch_fidelity.metric_isc")
    oracle = metric.isc_features_to_metric(torch.from_numpy(logits), splits=splits, shuffle=shuffle, rng_seed=2020)
    score = InceptionScore(503, splits=splits, shuffle_seed=2020 if shuffle else None)
    for start in range(0, 503, 64):
        score.update(logits[start : start + 64])
    result = score.compute()
    assert result.mean == pytest.approx(oracle["inception_score_mean"], rel=1e-9)
    assert result.std == pytest.approx(oracle["inception_score_std"], rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_merging_shards_in_any_order_equals_one_pass(logits, shards):
    whole = InceptionScore(503)
    whole.update(logits)
    merged = InceptionScore(503)
    for numbers in reversed(np.array_split(np.arange(503), shards)):
        part = merged.like()
        part.update(logits[numbers], numbers)
        stored = merged.like()
        stored.restore(part.state())
        merged.merge(stored)
    assert merged.compute().mean == pytest.approx(whole.compute().mean, rel=1e-12)
    assert merged.compute().std == pytest.approx(whole.compute().std, rel=1e-9)


def test_known_answers():
    sure = np.full((40, 4), -1e4)
    sure[np.arange(40), np.arange(40) % 4] = 1e4  # p log p of a vanishing p must be 0, not NaN
    score = InceptionScore(40, splits=1)
    score.update(sure)
    assert score.compute().mean == pytest.approx(4.0)
    unsure = InceptionScore(40, splits=2)
    unsure.update(np.zeros((40, 4)))
    assert unsure.compute().mean == pytest.approx(1.0)


def test_order_matters_and_shuffling_mends_it():
    sure = np.full((400, 10), -1e4)
    sure[np.arange(400), np.arange(400) // 40] = 1e4  # in class order, as many generators write their samples
    ordered, shuffled = InceptionScore(400, shuffle_seed=None), InceptionScore(400)
    ordered.update(sure)
    shuffled.update(sure)
    assert ordered.compute().mean == pytest.approx(1.0)
    assert shuffled.compute().mean > 7


def test_no_image_is_counted_twice_or_missed(logits):
    score = InceptionScore(503)
    score.update(logits[:300])
    with pytest.raises(ValueError, match="203 of 503 images are missing"):
        score.compute()
    with pytest.raises(ValueError, match="counted twice"):
        score.update(logits[:1], [299])
    with pytest.raises(ValueError, match="counted twice"):
        score.update(logits[:2], [400, 400])
    with pytest.raises(ValueError, match="leave"):
        score.update(logits[:1], [503])
    with pytest.raises(ValueError, match="image 0 was counted twice"):
        score.merge(score)
    with pytest.raises(ValueError, match="cannot merge"):
        score.merge(InceptionScore(503, splits=5))
    with pytest.raises(ValueError, match="19 classes, expected 20"):
        score.update(logits[:1, :19], [400])
    with pytest.raises(ValueError, match="NaN"):
        score.update(np.full((1, 20), np.nan), [400])
    with pytest.raises(ValueError, match="splits = 11"):
        InceptionScore(10, splits=11)

"""Metrics within classes: against the plain Frechet distance, and on classes known to be good or bad."""

import numpy as np
import pytest

from hamgan.metrics import class_accuracy, class_frechet, frechet_distance
from hamgan.metrics.classes import LinearReader


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 10)) * 3

    def draw(n, seed):
        random = np.random.default_rng(seed)
        labels = random.integers(0, 4, n)
        return (centres[labels] + random.normal(size=(n, 10))).astype(np.float32), labels

    return draw


def test_each_class_has_its_own_frechet_distance(sample):
    (real, real_labels), (fake, fake_labels) = sample(400, 1), sample(300, 2)
    fake[fake_labels == 2] += 3
    distances = class_frechet(real, real_labels, fake, fake_labels, 6)
    for label in range(4):
        expected = frechet_distance(fake[fake_labels == label], real[real_labels == label])
        assert distances[label] == pytest.approx(expected, rel=1e-9)
    assert distances[:4].argmax() == 2
    assert np.isnan(distances[4:]).all()


def test_accuracy_finds_the_bad_class(sample):
    (real, real_labels), (fake, fake_labels) = sample(600, 1), sample(500, 2)
    fine = class_accuracy(real, real_labels, fake, fake_labels, 4)
    assert fine.mean > 0.97
    assert fine.ceiling > 0.97
    confused = np.where(fake_labels == 1, 3, fake_labels)
    broken = class_accuracy(real, real_labels, fake, np.where(fake_labels == 3, 1, confused), 4)
    assert broken.per_class[[1, 3]].max() < 0.05
    assert broken.per_class[[0, 2]].min() > 0.95
    assert broken.mean == pytest.approx(0.5, abs=0.03)


def test_reader_is_linear_discriminant_analysis(sample):
    real, labels = sample(500, 1)
    reader = LinearReader.fit(real, labels, 5, shrinkage=0.0)
    x = real.astype(np.float64)
    means = np.stack([x[labels == label].mean(0) for label in range(4)])
    centred = x - means[labels]
    precision = np.linalg.inv(centred.T @ centred / (500 - 4))
    difference = x[:, None] - means
    mahalanobis = np.einsum("nkd,de,nke->nk", difference, precision, difference)
    np.testing.assert_array_equal(reader.predict(real), mahalanobis.argmin(axis=1))
    assert not reader.present[4]
    assert reader.predict(np.zeros((1, 10)))[0] != 4  # where every class that was seen scores below zero


def test_fewer_samples_than_features_still_reads():
    rng = np.random.default_rng(3)
    labels = np.arange(30) % 2
    x = rng.normal(size=(30, 200)) + labels[:, None]
    other = rng.normal(size=(40, 200)) + (np.arange(40) % 2)[:, None]
    assert class_accuracy(x, labels, other, np.arange(40) % 2, 2).mean > 0.9


def test_bad_input(sample):
    real, labels = sample(50, 1)
    with pytest.raises(ValueError, match="expected 50 class indices below 3"):
        class_frechet(real, labels, real, labels, 3)
    with pytest.raises(ValueError, match="num_classes = 1"):
        class_accuracy(real, labels * 0, real, labels * 0, 1)
    with pytest.raises(ValueError, match="widths"):
        class_accuracy(real, labels, real[:, :4], labels, 4)

"""The card's picture, and what `stats inspect` and `stats check` say."""

import dataclasses

import numpy as np
import pytest
import torch
from metric_samples import labelled_images, make_tiny_extractor
from PIL import Image

from hamgan.metrics import (
    ArrayImages,
    Description,
    EvaluationSettings,
    build_statistics,
    check_statistics,
    draw_picture,
    evaluate,
    inspect_statistics,
    save_statistics,
)

NAMES = ("apples", "bees", "cars")


@pytest.fixture
def training():
    return ArrayImages(*labelled_images(60, seed=0), class_names=NAMES)


@pytest.fixture
def reference(tmp_path, tiny, training):
    known = Description(dataset="toys", split="train")
    return build_statistics(training, tiny, tmp_path / "toys.npz", description=known, progress=False)


def test_picture_shows_the_images_that_the_card_names(reference, tiny, training, tmp_path):
    pixels, labels = labelled_images(40, seed=1, size=8)
    pixels[7] = training(np.array([11])).images[0]  # a copied training image
    images = ArrayImages(pixels, labels, class_names=NAMES)
    card = evaluate(images, reference, tiny, settings=EvaluationSettings(frechet_points=4), progress=False)
    assert card.closest[0][:2] == (7, 11)
    draw_picture(card, tmp_path / "card.png", images, training=training)
    shown = np.asarray(Image.open(tmp_path / "card.png"))
    row = card.classes[0]
    other = card.closest[1]
    for numbers, source in ((row.examples[:2], images), ((7, other[0]), images), ((11, other[1]), training)):
        for number in numbers:
            pixels = source(np.array([number])).images[0].permute(1, 2, 0)
            tile = torch.repeat_interleave(torch.repeat_interleave(pixels, 12, 0), 12, 1).numpy()
            assert contains(shown, tile)
    smaller = tmp_path / "no-training.png"
    draw_picture(card, smaller, images)
    assert Image.open(smaller).height < len(shown)


def contains(picture, tile):
    height, width = tile.shape[:2]
    first = np.argwhere((picture[: 1 - height, : 1 - width] == tile[0, 0]).all(axis=2))
    return any((picture[y : y + height, x : x + width] == tile).all() for y, x in first)


def test_inspect_says_what_matters(reference, tmp_path):
    text = inspect_statistics(reference.path)
    for fragment in (
        "tiny",
        "plain",
        "toys",
        "train",
        "60 in toys.features.npz",
        "3, from",
        reference.meta.fingerprint,
    ):
        assert fragment in text
    np.savez(tmp_path / "bare.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert "unverified reference" in inspect_statistics(tmp_path / "bare.npz")


def test_check_accepts_what_fits(reference, tiny):
    assert check_statistics(reference.path, extractor=tiny, resolution=8, dataset="toys") == []


def test_check_finds_what_does_not_fit(reference, tiny, tmp_path):
    path = reference.path
    with pytest.raises(ValueError, match="seen with 'other'"):
        check_statistics(path, extractor=make_tiny_extractor(name="other"))
    with pytest.raises(ValueError, match="resolution = 8"):
        check_statistics(path, extractor=tiny, resolution=64)
    with pytest.raises(ValueError, match="dataset = 'toys'"):
        check_statistics(path, dataset="tools")
    moments, meta = reference.moments, reference.meta
    save_statistics(path, dataclasses.replace(moments, mu=moments.mu + 1e-3), meta)
    with pytest.raises(ValueError, match="do not give the statistics in toys"):
        check_statistics(path)
    save_statistics(path, dataclasses.replace(moments, sigma=moments.sigma - np.eye(12)), meta)
    with pytest.raises(ValueError, match="sigma is no covariance"):
        check_statistics(path)
    save_statistics(path, moments, dataclasses.replace(meta, class_counts=(1, 2, 3)))
    with pytest.raises(ValueError, match="class counts sum to 6, n = 60"):
        check_statistics(path)
    save_statistics(tmp_path / "alone.npz", moments, dataclasses.replace(meta, n=10, class_counts=None))
    warnings = check_statistics(tmp_path / "alone.npz")
    assert any("singular" in warning for warning in warnings)
    assert any(r"no alone.features.npz" in warning for warning in warnings)

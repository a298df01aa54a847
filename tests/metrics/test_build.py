"""Building statistics: equal to one pass however it is cut, interrupted or merged."""

import shutil

import numpy as np
import pytest
import torch
from metric_samples import labelled_images

from hamgan.metrics import ArrayImages, Description, DrawnImages, build_statistics, merge_statistics
from hamgan.metrics import build as build_module
from hamgan.metrics.sources import Batch, ImageSource


class Interrupted(ImageSource):
    """Images that fail from some number on, as a killed process would stop there."""

    def __init__(self, source, stop):
        self._source, self._stop = source, stop
        self.num_images, self.fingerprint, self.class_names = source.num_images, source.fingerprint, source.class_names
        self.asked = []

    def __call__(self, indices) -> Batch:
        if indices[-1] >= self._stop:
            raise KeyboardInterrupt
        self.asked += indices.tolist()
        return self._source(indices)


@pytest.fixture
def images():
    pixels, labels = labelled_images(100, seed=0)
    return ArrayImages(pixels, labels, class_names=("x", "y", "z", "never"))


def expected(images, tiny):
    pool = tiny(images(np.arange(images.num_images)).images).pool.double().numpy()
    return pool, pool.mean(0), np.cov(pool, rowvar=False)


def test_equals_numpy_and_says_what_it_depends_on(tmp_path, images, tiny):
    reference = build_statistics(
        images, tiny, tmp_path / "out.npz", chunk_size=30, batch_size=8, progress=False,
        description=Description(dataset="toys", split="train", crop="centre"),
    )  # fmt: skip
    pool, mu, sigma = expected(images, tiny)
    np.testing.assert_allclose(reference.moments.mu, mu, rtol=1e-12)
    np.testing.assert_allclose(reference.moments.sigma, sigma, rtol=1e-9)
    meta = reference.meta
    assert (meta.n, meta.dataset, meta.split, meta.crop, meta.resolution) == (100, "toys", "train", "centre", 8)
    assert meta.identity == tiny.identity
    assert meta.fingerprint == images.fingerprint
    assert meta.class_names == ("x", "y", "z", "never")
    assert sum(meta.class_counts) == 100
    assert meta.class_counts[3] == 0
    features = reference.features()
    np.testing.assert_array_equal(features.pool, pool)
    np.testing.assert_array_equal(features.labels, images(np.arange(100)).labels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.features.npz", "out.npz"]


@pytest.mark.parametrize("keep_features", [True, False])
def test_goes_on_after_kills_to_the_same_bits(tmp_path, images, tiny, monkeypatch, keep_features):
    monkeypatch.setattr(build_module, "_SAVE_EVERY", 0.0)
    options = {"chunk_size": 16, "batch_size": 8, "progress": False, "keep_features": keep_features}
    for stop in (40, 70):
        with pytest.raises(KeyboardInterrupt):
            build_statistics(Interrupted(images, stop), tiny, tmp_path / "out.npz", **options)
    assert not (tmp_path / "out.npz").exists()
    rest = Interrupted(images, 1000)
    resumed = build_statistics(rest, tiny, tmp_path / "out.npz", **options)
    assert rest.asked == list(range(64, 100))  # four finished chunks of 16 were kept
    whole = build_statistics(images, tiny, tmp_path / "whole.npz", **options)
    np.testing.assert_array_equal(resumed.moments.mu, whole.moments.mu)
    np.testing.assert_array_equal(resumed.moments.sigma, whole.moments.sigma)
    assert resumed.meta.class_counts == whole.meta.class_counts
    if keep_features:
        np.testing.assert_array_equal(resumed.features().pool, whole.features().pool)
        np.testing.assert_array_equal(resumed.features().labels, whole.features().labels)
    else:
        assert resumed.features() is None


def test_a_chunk_damaged_between_two_starts_is_seen_again(tmp_path, images, tiny):
    options = {"chunk_size": 16, "batch_size": 8, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        build_statistics(Interrupted(images, 70), tiny, tmp_path / "out.npz", **options)
    chunk = tmp_path / "out.npz.partial" / "chunk-000002.npz"
    chunk.write_bytes(chunk.read_bytes()[:-40])
    rest = Interrupted(images, 1000)
    resumed = build_statistics(rest, tiny, tmp_path / "out.npz", **options)
    assert rest.asked == [*range(32, 48), *range(64, 100)]
    whole = build_statistics(images, tiny, tmp_path / "whole.npz", **options)
    np.testing.assert_array_equal(resumed.moments.sigma, whole.moments.sigma)


def test_partial_results_of_something_else_are_refused(tmp_path, images, tiny):
    with pytest.raises(KeyboardInterrupt):
        build_statistics(Interrupted(images, 70), tiny, tmp_path / "out.npz", chunk_size=16, progress=False)
    other = ArrayImages(*labelled_images(100, seed=1))
    with pytest.raises(ValueError, match=r"partial results with images = .*remove the folder"):
        build_statistics(other, tiny, tmp_path / "out.npz", chunk_size=16, progress=False)
    with pytest.raises(ValueError, match="partial results with chunk_size = 16, now 32"):
        build_statistics(images, tiny, tmp_path / "out.npz", chunk_size=32, progress=False)


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_merged_shards_equal_the_whole(tmp_path, images, tiny, shards):
    whole = build_statistics(images, tiny, tmp_path / "whole.npz", progress=False)
    paths = []
    for i, numbers in enumerate(np.array_split(np.arange(100), shards)):
        batch = images(numbers)
        part = ArrayImages(batch.images, batch.labels, class_names=images.class_names)
        paths.append(tmp_path / f"part{i}.npz")
        build_statistics(part, tiny, paths[-1], progress=False)
    merged = merge_statistics(paths, tmp_path / "merged.npz")
    np.testing.assert_allclose(merged.moments.mu, whole.moments.mu, rtol=1e-12)
    np.testing.assert_allclose(merged.moments.sigma, whole.moments.sigma, rtol=1e-9)
    assert merged.meta.n == 100
    assert merged.meta.class_counts == whole.meta.class_counts


def test_only_like_is_merged_with_like(tmp_path, images, tiny):
    build_statistics(images, tiny, tmp_path / "a.npz", progress=False)
    larger = ArrayImages(*labelled_images(40, seed=0, size=16), class_names=images.class_names)
    build_statistics(larger, tiny, tmp_path / "b.npz", progress=False)
    with pytest.raises(ValueError, match=r"b\.npz: resolution = 16, but .*a\.npz has 8"):
        merge_statistics([tmp_path / "a.npz", tmp_path / "b.npz"], tmp_path / "c.npz")
    shutil.copy(tmp_path / "a.npz", tmp_path / "copy.npz")
    for twice in ("a", "copy"):
        with pytest.raises(ValueError, match=rf"{twice}\.npz: the same images as .*a\.npz; parts must not overlap"):
            merge_statistics([tmp_path / "a.npz", tmp_path / f"{twice}.npz"], tmp_path / "c.npz")
    np.savez(tmp_path / "bare.npz", mu=np.zeros(12), sigma=np.eye(12))
    with pytest.raises(ValueError, match="only statistics that hamgan wrote"):
        merge_statistics([tmp_path / "a.npz", tmp_path / "bare.npz"], tmp_path / "c.npz")


def test_images_that_grew_between_two_starts_are_noticed(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(build_module, "_SAVE_EVERY", 0.0)
    small, large = (ArrayImages(*labelled_images(20, seed=0, size=size)) for size in (8, 9))
    large.fingerprint = small.fingerprint
    options = {"chunk_size": 5, "batch_size": 5, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        build_statistics(Interrupted(small, 12), tiny, tmp_path / "out.npz", **options)
    with pytest.raises(ValueError, match="images of mixed sizes: 8x8 and 9x9"):
        build_statistics(large, tiny, tmp_path / "out.npz", **options)


def test_bad_input(tmp_path, images, tiny):
    with pytest.raises(ValueError, match=r"named \*\.npz"):
        build_statistics(images, tiny, tmp_path / "out.txt")
    with pytest.raises(ValueError, match="at least 2 images"):
        build_statistics(ArrayImages(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), tiny, tmp_path / "out.npz")
    nameless = DrawnImages(lambda numbers: (torch.zeros(len(numbers), 3, 8, 8, dtype=torch.uint8), None), 5)
    with pytest.raises(ValueError, match="needs a fingerprint"):
        build_statistics(nameless, tiny, tmp_path / "out.npz")

    def growing(numbers):
        return torch.zeros(len(numbers), 3, 8 if numbers[0] < 5 else 9, 8, dtype=torch.uint8), None

    mixed = DrawnImages(growing, 10, fingerprint="f")
    with pytest.raises(ValueError, match="images of mixed sizes: 8x8 and 8x9"):
        build_statistics(mixed, tiny, tmp_path / "out.npz", batch_size=5, chunk_size=5, progress=False)


def test_a_damaged_running_sum_is_named(tmp_path, images, tiny, monkeypatch):
    monkeypatch.setattr(build_module, "_SAVE_EVERY", 0.0)
    options = {"chunk_size": 16, "progress": False, "keep_features": False}
    with pytest.raises(KeyboardInterrupt):
        build_statistics(Interrupted(images, 70), tiny, tmp_path / "out.npz", **options)
    (part,) = (tmp_path / "out.npz.partial").glob("part-*.npz")
    part.write_bytes(part.read_bytes()[:-40])
    with pytest.raises(ValueError, match=rf"{part.name}: damaged"):
        build_statistics(images, tiny, tmp_path / "out.npz", **options)

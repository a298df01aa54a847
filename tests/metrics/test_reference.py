"""Stored statistics: read by others, readable from others, and refused when they do not fit."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
from metric_samples import make_tiny_extractor

from hamgan.metrics import FeatureStats, StatsMeta, check_dataset, load_statistics, save_statistics
from hamgan.metrics.reference import check_comparable, load_features
from hamgan.metrics.storage import map_array, write_rows


@pytest.fixture
def stored(tmp_path, features, tiny):
    moments = FeatureStats.from_features(features(100, 12, seed=1)).moments()
    meta = StatsMeta(**tiny.identity, n=100, dataset="toys", resolution=8, fingerprint="ab", class_names=("x", "y"))
    save_statistics(tmp_path / "toys.npz", moments, meta)
    return tmp_path / "toys.npz", moments, meta


def test_return_to_the_last_bit(stored):
    path, moments, meta = stored
    reference = load_statistics(path)
    np.testing.assert_array_equal(reference.moments.mu, moments.mu)
    np.testing.assert_array_equal(reference.moments.sigma, moments.sigma)
    assert reference.moments.n == 100
    assert reference.meta == meta
    assert reference.features() is None


def test_pytorch_fid_reads_ours(stored):
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    path, moments, _ = stored
    mu, sigma = fid_score.compute_statistics_of_path(str(path), None, 1, 12, "cpu")
    np.testing.assert_array_equal(mu, moments.mu)
    np.testing.assert_array_equal(sigma, moments.sigma)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_bare_files_of_others_are_unverified(tmp_path, stored, tiny, save):
    _, moments, _ = stored
    save(tmp_path / "bare.npz", mu=moments.mu.astype(np.float32), sigma=moments.sigma, mu_s=np.zeros(3))
    reference = load_statistics(tmp_path / "bare.npz")
    assert reference.meta is None
    assert reference.moments.n is None
    (warning,) = check_comparable(reference, tiny, 8)
    assert "unverified reference" in warning


@pytest.mark.parametrize(
    ("extractor", "resolution", "message"),
    [
        (make_tiny_extractor(name="other"), 8, "extractor = 'tiny', but the images are seen with 'other'"),
        (make_tiny_extractor(protocol="tf1"), 8, "protocol = 'plain', but the images are seen with 'tf1'"),
        (make_tiny_extractor(), 16, "resolution = 8, but the images have 16"),
    ],
)
def test_what_is_not_comparable_is_refused(stored, extractor, resolution, message):
    with pytest.raises(ValueError, match=message) as error:
        check_comparable(load_statistics(stored[0]), extractor, resolution)
    assert "toys.npz" in str(error.value)
    assert check_comparable(load_statistics(stored[0]), make_tiny_extractor(), 8) == []


def test_other_weights_and_widths_are_refused(stored, tiny):
    tiny.weights_sha256 = "1" * 64
    with pytest.raises(ValueError, match="weights_sha256 = '000"):
        check_comparable(load_statistics(stored[0]), tiny, 8)
    tiny.dim = 13
    with pytest.raises(ValueError, match="width 12, but tiny gives 13"):
        check_comparable(load_statistics(stored[0]), tiny, 8)


def test_another_data_set_is_refused(stored):
    reference = load_statistics(stored[0])
    check_dataset(reference, dataset="toys", fingerprint="ab")
    check_dataset(reference)
    with pytest.raises(ValueError, match="dataset = 'toys', expected 'tools'"):
        check_dataset(reference, dataset="tools")
    with pytest.raises(ValueError, match="fingerprint = 'ab', expected 'cd'"):
        check_dataset(reference, fingerprint="cd")


def bad_file(kind, path, good, stored):
    _, moments, meta = stored
    arrays = {"mu": moments.mu, "sigma": moments.sigma, "n": np.array(100)}
    if kind == "truncated":
        path.write_bytes(good[: len(good) // 2])
    elif kind == "flipped":
        middle = len(good) // 2
        path.write_bytes(good[:middle] + bytes([good[middle] ^ 255]) + good[middle + 1 :])
    elif kind == "text":
        path.write_text("mu = 3")
    elif kind == "empty":
        path.touch()
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"mu": [1]}))
    elif kind == "objects":
        np.savez(path, mu=np.array([{}], dtype=object), sigma=moments.sigma)
    elif kind == "no sigma":
        np.savez(path, mu=moments.mu)
    elif kind == "single array":
        path.with_suffix(".npy").unlink(missing_ok=True)
        np.save(path.with_suffix(".npy"), moments.mu)
        path.with_suffix(".npy").rename(path)
    elif kind == "shapes":
        np.savez(path, **arrays | {"sigma": moments.sigma[:5]})
    elif kind == "not finite":
        np.savez(path, **arrays | {"mu": np.full(12, np.nan)})
    elif kind == "asymmetric":
        np.savez(path, **arrays | {"sigma": np.triu(moments.sigma)})
    elif kind == "negative":
        np.savez(path, **arrays | {"sigma": -moments.sigma})
    elif kind == "huge":
        np.savez(path, **arrays | {"sigma": moments.sigma * 1e40})
    elif kind == "text arrays":
        np.savez(path, **arrays | {"mu": np.full(12, "1.0")})
    elif kind == "count":
        np.savez(path, **arrays, hamgan_meta=np.array(json.dumps(meta.to_json() | {"n": "many"})))
    elif kind == "meta":
        np.savez(path, **arrays, hamgan_meta=np.array("{broken"))
    elif kind == "schema":
        np.savez(path, **arrays, hamgan_meta=np.array(json.dumps(meta.to_json() | {"schema": 99})))
    elif kind == "one":
        np.savez(path, **arrays, hamgan_meta=np.array(json.dumps(dataclasses.replace(meta, n=1).to_json())))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "damaged"),
        ("flipped", "damaged"),
        ("text", "refused|damaged"),
        ("empty", "damaged"),
        ("pickle", "refused: it holds pickled objects"),
        ("objects", "refused: it holds pickled objects"),
        ("no sigma", "no array 'sigma'; it holds mu"),
        ("single array", "single array"),
        ("shapes", r"expected \(d,\) and \(d, d\)"),
        ("not finite", "NaN or infinity"),
        ("asymmetric", "sigma is no covariance, it differs from its transpose"),
        ("negative", "sigma is no covariance, it has a variance of -"),
        ("huge", "sigma is no covariance of features, it has an entry of"),
        ("text arrays", "mu holds <U3, expected real numbers"),
        ("count", "n = 'many', expected a count"),
        ("meta", "damaged metadata"),
        ("schema", "schema 99"),
        ("one", "n = 1: a covariance needs at least 2"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path, stored, kind, message):
    path = tmp_path / "bad.npz"
    bad_file(kind, path, stored[0].read_bytes(), stored)
    with pytest.raises(ValueError, match=message) as error:
        load_statistics(path)
    assert "bad.npz" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
        load_statistics(tmp_path / "absent.npz")


def test_features_are_mapped_and_match_their_statistics(tmp_path, stored, features):
    rows = features(100, 12, seed=1)
    blocks = {"pool": iter([rows[:30], rows[30:]]), "labels": iter([np.arange(100)])}
    shapes = {"pool": ((100, 12), np.dtype(np.float32)), "labels": ((100,), np.dtype(np.int64))}
    path = tmp_path / "toys.features.npz"
    write_rows(path, blocks, shapes, {"schema": 1})
    loaded = load_statistics(stored[0]).features()
    assert isinstance(loaded.pool, np.memmap)
    np.testing.assert_array_equal(loaded.pool, rows)
    np.testing.assert_array_equal(loaded.labels, np.arange(100))
    with np.load(path, allow_pickle=False) as plain:  # an ordinary archive for everybody else
        np.testing.assert_array_equal(plain["pool"], rows)
    write_rows(path, {"pool": iter([rows[:9]]), "labels": iter([np.arange(9)])},
               {"pool": ((9, 12), np.dtype(np.float32)), "labels": ((9,), np.dtype(np.int64))}, {})  # fmt: skip
    with pytest.raises(ValueError, match=r"9 features, but .* was built from 100"):
        load_statistics(stored[0]).features()
    np.savez_compressed(path, pool=rows, labels=np.arange(100))
    with pytest.raises(ValueError, match="compressed"):
        load_features(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        load_features(path)
    with pytest.raises(ValueError, match="no array 'pool'"):
        map_array(stored[0], "pool")

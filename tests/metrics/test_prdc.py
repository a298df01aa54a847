"""Precision, recall, density and coverage: exactly those of a dense float64 computation, ties and copies included."""

import subprocess
import sys

import numpy as np
import pytest

from hamgan.metrics import memorisation, prdc
from hamgan.metrics import neighbours as neighbours_module
from hamgan.metrics.neighbours import PointSet, kth_neighbour


def squared_distances(a, b):
    return np.stack([np.square(row.astype(np.float64) - b).sum(axis=1) for row in a])


def dense(real, fake, k, inclusive=False):
    real_radius = np.sort(squared_distances(real, real), axis=1)[:, k]
    fake_radius = np.sort(squared_distances(fake, fake), axis=1)[:, k]
    across = squared_distances(fake, real)
    inside = across <= real_radius if inclusive else across < real_radius
    inside_fake = fake_radius >= across.T if inclusive else fake_radius > across.T
    density = inside.sum() / len(fake) / k
    return inside.any(axis=1).mean(), inside_fake.any(axis=1).mean(), density, inside.any(axis=0).mean()


def cases():
    rng = np.random.default_rng(0)
    real = (rng.normal(size=(230, 24)) + 5).astype(np.float32)
    fake = (rng.normal(size=(200, 24)) * 0.9 + 5).astype(np.float32)
    copied, collapsed, mixed = fake.copy(), fake.copy(), real.copy()
    copied[:120] = real[:120]
    collapsed[:] = real[3]
    mixed[:90] = real[90:180]
    cluster = real.copy()
    cluster[:100] = real[0] + 1e-5 * rng.normal(size=(100, 24)).astype(np.float32)
    near = real[5] + 1e-6 * rng.normal(size=fake.shape).astype(np.float32)
    return {
        "plain": (real, fake),
        "copies of real images": (real, copied),
        "one image only": (real, collapsed),
        "nearly one image": (real, near),
        "a tight cluster far from the mean": (cluster, fake),
        "duplicates on both sides": (mixed, np.concatenate([mixed[:60], fake[:100]])),
        "a lattice full of ties": (real.round(), fake.round()),
        "far from the origin": (real + 1e4, fake + 1e4),
        "constant": (np.ones((40, 3), np.float32), np.ones((30, 3), np.float32)),
    }


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("name", list(cases()))
def test_equals_the_dense_computation_exactly(name, inclusive, monkeypatch):
    monkeypatch.setattr(neighbours_module, "_ROWS", 64)
    real, fake = cases()[name]
    k = 3 if inclusive else 5
    result = prdc(real, fake, k, inclusive=inclusive)
    expected = dense(real, fake, k, inclusive)
    assert (result.precision, result.recall, result.density, result.coverage) == expected
    assert (result.num_real, result.num_fake, result.k) == (len(real), len(fake), k)


@pytest.mark.parametrize("name", list(cases()))
def test_every_radius_is_exact(name):
    real, fake = cases()[name]
    points, queries = (PointSet(x, centre=real.mean(0, dtype=np.float64)) for x in (real, fake))
    radius, _ = kth_neighbour(points, points, 5)
    np.testing.assert_array_equal(radius[points.inverse], np.sort(squared_distances(real, real), axis=1)[:, 5])
    radius, _ = kth_neighbour(queries, points, 1)
    np.testing.assert_array_equal(radius[queries.inverse], squared_distances(fake, real).min(axis=1))


def test_float64_features_are_taken_at_their_word():
    rng = np.random.default_rng(1)
    real, fake = rng.normal(size=(80, 6)), rng.normal(size=(70, 6))
    real[:30] *= 1e-9  # differences that float32 cannot hold
    result = prdc(real, fake, 5)
    assert (result.precision, result.recall, result.density, result.coverage) == dense(real, fake, 5)


def test_known_answers():
    rng = np.random.default_rng(2)
    real = rng.normal(size=(300, 4)).astype(np.float32)
    same = prdc(real, rng.normal(size=(300, 4)).astype(np.float32))
    assert same.density == pytest.approx(1.0, abs=0.15)
    assert same.coverage > 0.9
    far = prdc(real, real + 100)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    narrow = prdc(real, (rng.normal(size=(300, 4)) * 0.1).astype(np.float32))
    assert narrow.precision > 0.95 > 0.2 > narrow.recall


def test_agrees_with_torch_fidelity_in_its_style():
    metric = pytest.importorskip("torch_fidelity.metric_prc")
    import torch

    rng = np.random.default_rng(3)
    real = torch.from_numpy(rng.normal(size=(150, 8))).float()
    fake = torch.from_numpy(rng.normal(size=(130, 8)) * 0.8).float()
    oracle = metric.prc_features_to_metric(fake, real, verbose=False)
    result = prdc(real, fake, 3, inclusive=True)
    assert result.precision == pytest.approx(oracle["precision"], abs=1e-6)
    assert result.recall == pytest.approx(oracle["recall"], abs=1e-6)


def test_errors_are_those_of_a_bootstrap():
    rng = np.random.default_rng(4)
    real, fake = rng.normal(size=(200, 5)), rng.normal(size=(200, 5))
    result = prdc(real, fake)
    share = result.precision
    assert result.precision_error == pytest.approx(np.sqrt(share * (1 - share) / 200))


def test_nearest_is_exact_and_names_the_copy():
    rng = np.random.default_rng(5)
    train = rng.normal(size=(90, 7)).astype(np.float32)
    fake = rng.normal(size=(50, 7)).astype(np.float32)
    fake[10], fake[20] = train[33], train[44]
    points = (PointSet(x, centre=train.mean(0, dtype=np.float64)) for x in (fake, train))
    squared, nearest = kth_neighbour(*points, 1)
    dense_squared = squared_distances(fake, train)
    np.testing.assert_array_equal(squared, dense_squared.min(axis=1))
    np.testing.assert_array_equal(nearest, dense_squared.argmin(axis=1))
    result = memorisation(fake, train)
    assert result.exact_copies == 2
    assert set(result.closest[:2]) == {(10, 33), (20, 44)}
    assert result.distances[:2] == (0.0, 0.0)
    assert memorisation(fake.astype(np.float64), train).exact_copies == 2  # of whatever type


def test_memorisation_is_neutral_for_new_images_and_sees_copies():
    rng = np.random.default_rng(6)
    train, heldout = rng.normal(size=(800, 6)), rng.normal(size=(800, 6))
    new = memorisation(rng.normal(size=(800, 6)), train, heldout)
    assert new.near_share == pytest.approx(0.05, abs=4 * 0.05**0.5 / 800**0.5)
    assert new.nearer_probability == pytest.approx(0.5, abs=0.06)
    assert new.calibration == "held-out"
    alone = memorisation(rng.normal(size=(800, 6)), train)
    assert alone.near_share == pytest.approx(0.05, abs=4 * 0.05**0.5 / 800**0.5)
    assert alone.calibration == "leave-one-out"
    for known in (heldout, None):
        copies = memorisation(train[:400] + 1e-3 * rng.normal(size=(400, 6)), train, known)
        assert copies.near_share > 0.95
        assert copies.nearer_probability > 0.99
        assert copies.exact_copies == 0


def test_bad_input():
    x = np.ones((10, 3))
    with pytest.raises(ValueError, match="widths 3 and 4"):
        prdc(x, np.ones((10, 4)))
    with pytest.raises(ValueError, match=r"k = 10: expected 1\.\.9"):
        prdc(x, x, 10)
    with pytest.raises(ValueError, match="NaN"):
        prdc(x, np.full((10, 3), np.nan))
    with pytest.raises(ValueError, match="at least 2 training images"):
        memorisation(x, x[:1])
    with pytest.raises(ValueError, match=r"widths 3 and 2 \(heldout\)"):
        memorisation(x, x, np.ones((4, 2)))


@pytest.mark.slow
def test_memory_stays_at_blocks():
    """In a process of its own, since the peak is the process's: far below one dense 10k x 10k matrix of float64."""
    program = """
import resource, numpy as np
from hamgan.metrics import prdc
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
rng = np.random.default_rng(0)
real, fake = rng.standard_normal((10_000, 256), np.float32), rng.standard_normal((10_000, 256), np.float32)
prdc(real[:600], fake[:600])
before = peak()
prdc(real, fake)
assert peak() - before < 0.35, (before, peak())
"""
    subprocess.run([sys.executable, "-c", program], check=True)

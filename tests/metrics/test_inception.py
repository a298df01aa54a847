"""The Inception pipelines, bit for bit against pytorch-fid and torch-fidelity on the same random weights."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from hamgan.metrics.extractors import inception, load_extractor
from hamgan.metrics.extractors.weights import sha256_of


@pytest.fixture(autouse=True)
def one_thread():
    """Of the oracles, whose last bits depend on it; ours do not."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights(tmp_path_factory, images):
    """A random network whose batch norms were calibrated on a batch: values stay of order one."""
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    network = inception.InceptionFID()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    torch.random.set_rng_state(generator_state)
    with torch.no_grad():
        network.train()(inception.preprocess_tf1(images))
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(4, 3, 5, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(40, 48), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().to(torch.uint8)


def test_equals_pytorch_fid_bitwise(weights, images, monkeypatch):
    theirs = pytest.importorskip("pytorch_fid.inception")
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: torch.load(weights))
    oracle = theirs.InceptionV3([3]).eval()
    ours = load_extractor("inception", protocol="pytorch-fid", weights=weights, verify=False)
    with torch.no_grad():
        expected = oracle(images.float() / 255)[0][:, :, 0, 0]
    got = ours(images)
    assert got.pool.shape == (4, 2048)
    assert got.pool.std() > 0.01  # not a collapsed network
    assert torch.equal(got.pool, expected)
    fc = torch.load(weights)
    torch.testing.assert_close(got.logits, expected @ fc["fc.weight"].T)
    assert got.logits.shape == (4, 1008)


def test_equals_torch_fidelity_bitwise(weights, images):
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    oracle = theirs.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    ours = load_extractor("inception", protocol="tf1", weights=weights, verify=False)
    with torch.no_grad():
        pool, logits = oracle(images)
    got = ours(images)
    assert torch.equal(got.pool, pool)
    assert torch.equal(got.logits, logits)


@pytest.mark.parametrize("shape", [(32, 32), (40, 48), (400, 350), (299, 299)])
def test_legacy_resize_is_tensorflows(shape):
    theirs = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    batch = torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = theirs.interpolate_bilinear_2d_like_tensorflow1x(batch.float(), size=(299, 299), align_corners=False)
    assert torch.equal(inception.preprocess_tf1(batch), (expected - 128) / 128)


def test_clean_resize_is_pillows_per_channel(images):
    got = inception.preprocess_clean(images)
    assert got.shape == (4, 3, 299, 299)
    plane = Image.fromarray(images[1, 2].numpy().astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC)
    expected = (np.asarray(plane).clip(0, 255) - 128) / 128
    np.testing.assert_array_equal(got[1, 2].numpy(), expected)


def test_protocols_differ_and_batches_do_not(weights, images):
    one = load_extractor("inception", protocol="clean", weights=weights, verify=False)
    other = load_extractor("inception", protocol="tf1", weights=weights, verify=False)
    assert one.identity != other.identity
    assert one.identity["weights_sha256"] == sha256_of(weights)
    whole = one(images).pool
    assert not torch.allclose(whole, other(images).pool, rtol=1e-3)
    parts = torch.cat([one(images[:1]).pool, one(images[1:]).pool])
    assert torch.equal(parts, whole)


def test_wrong_weights_are_refused_in_one_line(weights, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"SHA-256 is [0-9a-f]{16}\.\.\., expected 6726825d") as error:
        load_extractor("inception", weights=weights)
    assert str(weights) in str(error.value)
    monkeypatch.setenv("HAMGAN_INCEPTION_WEIGHTS", str(tmp_path / "absent.pth"))
    with pytest.raises(ValueError, match=r"HAMGAN_INCEPTION_WEIGHTS = .*absent\.pth: no such file"):
        load_extractor("inception")
    monkeypatch.setenv("HAMGAN_INCEPTION_WEIGHTS", str(weights))
    assert load_extractor("inception", verify=False).weights_sha256 == sha256_of(weights)
    short = {n: t for n, t in torch.load(weights).items() if n != "fc.bias"}
    torch.save(short, tmp_path / "short.pth")
    with pytest.raises(ValueError, match=r"no 'fc\.bias' \(1 names missing"):
        load_extractor("inception", weights=tmp_path / "short.pth", verify=False)


def test_download_discards_other_bytes(tmp_path, monkeypatch):
    source = tmp_path / "other.pth"
    source.write_bytes(b"something else")
    monkeypatch.setattr(inception, "WEIGHTS_URL", source.as_uri())
    monkeypatch.setenv("HAMGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HAMGAN_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(ValueError, match="got SHA-256"):
        load_extractor("inception")
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(inception, "WEIGHTS_URL", (tmp_path / "absent.pth").as_uri())
    with pytest.raises(ValueError, match=r"cannot download .* as HAMGAN_INCEPTION_WEIGHTS"):
        load_extractor("inception")
    monkeypatch.setattr(inception, "WEIGHTS_URL", source.as_uri())
    monkeypatch.setattr(inception, "WEIGHTS_SHA256", sha256_of(source))
    assert inception.weights_path().read_bytes() == b"something else"


@pytest.mark.skipif("HAMGAN_INCEPTION_WEIGHTS" not in os.environ, reason="needs the real weights")
def test_real_weights_give_pytorch_fids_features(images, monkeypatch):
    theirs = pytest.importorskip("pytorch_fid.inception")
    real = torch.load(os.environ["HAMGAN_INCEPTION_WEIGHTS"], weights_only=True)
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: real)
    with torch.no_grad():
        expected = theirs.InceptionV3([3]).eval()(images.float() / 255)[0][:, :, 0, 0]
    ours = load_extractor("inception", protocol="pytorch-fid")
    assert ours.weights_sha256 == inception.WEIGHTS_SHA256
    assert torch.equal(ours(images).pool, expected)

"""Files from strangers, damaged in every way that a seed can think of: read right, or refused in one line that names them."""

import io
import json
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hamgan.metrics import load_extractor, load_features, load_npz_images, load_statistics
from hamgan.metrics.extractors.vit import DinoV2
from hamgan.metrics.extractors.weights import read_state_dict

CASES = 60  # seeds of each kind of file


def statistics(path):
    """Stored statistics with metadata, small enough to damage often."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6))
    meta = {
        "extractor": "tiny", "protocol": "plain", "weights_sha256": "0" * 64, "n": 40, "ddof": 1, "dataset": "toys",
        "split": "train", "resolution": 8, "crop": None, "filter": None, "fingerprint": "f" * 64,
        "class_names": ["a", "b"], "class_counts": [20, 20], "versions": {"hamgan": "1"}, "date": "2020", "schema": 1,
    }  # fmt: skip
    np.savez(path, mu=x.mean(0), sigma=np.cov(x, rowvar=False), n=np.array(40), hamgan_meta=np.array(json.dumps(meta)))


def features(path):
    rng = np.random.default_rng(0)
    np.savez(path, pool=rng.normal(size=(40, 6)).astype(np.float32), labels=np.arange(40) % 2)


def samples(path):
    rng = np.random.default_rng(0)
    np.savez(path, arr_0=rng.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8), arr_1=np.arange(6) % 2)


def state():
    torch.manual_seed(0)
    return DinoV2(dim=64, depth=1, patch=14, grid=2).state_dict()


def in_bytes(data, rng):
    """Flip, overwrite, cut, double or insert some bytes."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        start = int(rng.integers(0, max(len(out), 1)))
        length = int(rng.integers(1, 40))
        kind = rng.integers(0, 5)
        if kind == 0 and out:
            out[min(start, len(out) - 1)] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            out[start : start + length] = rng.bytes(length)
        elif kind == 2:
            del out[start : len(out) if rng.integers(0, 4) == 0 else start + length]
        elif kind == 3:
            out[start:start] = out[start : start + length]
        else:
            out[start:start] = bytes(length)
    return bytes(out)


def in_members(data, rng):
    """Damage a member and pack the archive again, so that its checksums hold."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        chosen = names[int(rng.integers(0, len(names)))]
        for name in names:
            content = old.read(name)
            if name == chosen:
                head = content[:128] if rng.integers(0, 2) and len(content) > 128 else content
                content = in_bytes(head, rng) + content[len(head) :]
            new.writestr(name, content)
    return out.getvalue()


def in_values(data, rng):
    """Put another value, or another array, in the place of one: everything is well-formed, and wrong."""
    with np.load(io.BytesIO(data)) as archive:
        arrays = dict(archive)
    odd = [
        np.nan, np.inf, -1.0, 1e300, 0, 2**40, "x", 1j, [], [1, 2, 3], np.zeros((3, 4)), np.zeros((0, 0)),
        np.zeros(6, np.float16), -np.eye(6), np.full((6, 6), 1e200), np.arange(36.0).reshape(6, 6), True,
    ]  # fmt: skip
    value = odd[int(rng.integers(0, len(odd)))]
    if "hamgan_meta" in arrays and rng.integers(0, 2):
        meta = json.loads(str(arrays["hamgan_meta"]))
        key = list(meta)[int(rng.integers(0, len(meta)))]
        plain = [None, -1, 0, 1.5, 10**30, "x", True, [], [1], ["a"], {}, {"a": 1}, [[]], "", float("nan")]
        meta[key] = plain[int(rng.integers(0, len(plain)))]
        arrays["hamgan_meta"] = np.array(json.dumps(meta))
    else:
        key = list(arrays)[int(rng.integers(0, len(arrays)))]
        if rng.integers(0, 2) and arrays[key].size and not isinstance(value, list) and np.ndim(value) == 0:
            array = arrays[key].astype(np.result_type(arrays[key], np.asarray(value)))
            array.flat[int(rng.integers(0, array.size))] = value
            arrays[key] = array
        else:
            arrays[key] = np.asarray(value)
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def read_or_refused(read, path):
    """Whether a file was read; refused it must be by one line with its name, and nothing else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            answer = read(path)
    except ValueError as error:
        assert path.name in str(error) and "\n" not in str(error), str(error)
        return None
    return answer


def check_statistics(path):
    reference = load_statistics(path)
    assert np.isfinite(reference.moments.mu).all() and np.isfinite(reference.moments.sigma).all()
    assert (reference.moments.sigma == reference.moments.sigma.T).all()
    if reference.meta is not None:
        assert isinstance(reference.meta.n, int) and all(
            isinstance(value, str) for value in reference.meta.identity.values()
        )
    return reference


def check_features(path):
    stored = load_features(path)
    assert len(stored.pool) == len(stored.labels)
    return float(np.nan_to_num(np.abs(stored.pool)).sum(dtype=np.float64)), stored.labels.sum()  # every page is there


ARCHIVES = {
    "statistics": (statistics, check_statistics),
    "features": (features, check_features),
    "samples": (samples, load_npz_images),
}


def damage(kind, how, seed, folder):
    """Damage one archive and read it; return what came of it."""
    write, read = ARCHIVES[kind]
    whole = folder / f"{kind}.npz"
    if not whole.exists():
        write(whole)
    path = folder / "damaged.npz"
    path.write_bytes(how(whole.read_bytes(), np.random.default_rng(seed)))
    return read_or_refused(read, path)


@pytest.mark.parametrize("how", [in_bytes, in_members, in_values])
@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_are_read_or_refused(kind, how, tmp_path):
    write, read = ARCHIVES[kind]
    write(tmp_path / "whole.npz")
    assert read_or_refused(read, tmp_path / "whole.npz") is not None
    read_in_spite = sum(damage(kind, how, seed, tmp_path) is not None for seed in range(CASES))
    assert read_in_spite < CASES * 0.9  # most damage is seen


def in_weights(tensors, rng):
    """Rename, drop, reshape or retype a weight."""
    name = list(tensors)[int(rng.integers(0, len(tensors)))]
    changed = dict(tensors)
    tensor = changed.pop(name)
    kind = int(rng.integers(0, 7))
    other = {
        0: {}, 1: {"blocks.999999999.norm1.weight": tensor}, 2: {name: tensor[..., :-1].clone()}, 3: {name: tensor.flatten()},
        4: {name: tensor.long()}, 5: {name: tensor[:0].clone()}, 6: {name: tensor.to(torch.complex64)},
    }[kind]  # fmt: skip
    return changed | other


def damage_weights(form, seed, folder):
    """Damage one weight file and build an extractor from it; return what came of it."""
    rng = np.random.default_rng(seed)
    path = folder / f"damaged.{form}"
    tensors = in_weights(state(), rng) if rng.integers(0, 2) else state()
    if form == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    if rng.integers(0, 3):
        path.write_bytes(in_bytes(path.read_bytes(), rng))
    read_or_refused(read_state_dict, path)
    return read_or_refused(lambda path: load_extractor("dinov2", weights=path), path)


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_weights_are_read_or_refused(form, tmp_path):
    path = tmp_path / f"whole.{form}"
    torch.save(state(), path) if form == "pth" else save_file(state(), path)
    assert load_extractor("dinov2", weights=path).dim == 64
    read_in_spite = sum(damage_weights(form, seed, tmp_path) is not None for seed in range(CASES // 2))
    assert read_in_spite < CASES // 2

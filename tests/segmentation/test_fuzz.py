"""Public checkpoints and masks damaged in every way that a seed can think of: read right, or refused in one line."""

import io
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzz_files import change_bytes, change_tensor
from PIL import Image

import hamgan.segmentation
from hamgan.segmentation import pascal
from hamgan.segmentation.dataset import Pair, PairedFiles, identity_conversion
from hamgan.segmentation.load import load_backbone, public_state_dict
from hamgan.segmentation.model import SegmentationConfig, Segmentor
from hamgan.segmentation.palettes import distinct_palette

CASES = 60  # seeds of each kind of file


def survives(path: Path, data: bytes, read: Callable[[Path], object]) -> bool:
    """Read a case; say whether it was read, and fail unless it is or is refused in one clear line."""
    path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(path)
    except (ValueError, OSError) as error:
        message = str(error)
        assert path.name in message and "\n" not in message and len(message) < 3000, message
        return False
    return True


def try_all(path: Path, cases: list[bytes], read: Callable[[Path], object]) -> None:
    """Try cases; damage must both be refused and, where it is harmless, be read."""
    done = [survives(path, data, read) for data in cases]
    assert not all(done)


def saved(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("backbone", ["van_tiny", "resnet101"])
def test_damaged_public_checkpoints(backbone: str, tmp_path: Path, tiny_model: SegmentationConfig) -> None:
    config = tiny_model
    if backbone == "resnet101":
        config = SegmentationConfig(
            num_classes=3, backbone="resnet101", backbone_dims=(16, 16, 32, 32), backbone_depths=(1, 1, 1, 1),
            stem_channels=(4, 4, 8), head="ham_net_plus", squeeze_channels=32, channels=32, rank=4, auxiliary=True,
            auxiliary_channels=32,
        )  # fmt: skip
    network = Segmentor(config)
    state: dict[str, Any] = {"meta": {"epoch": 3}, "state_dict": public_state_dict(network)}
    whole = saved(state)

    def read(path: Path) -> None:
        model = hamgan.segmentation.load(path)
        with torch.no_grad():
            model(torch.zeros(1, 3, 64, 64))

    path = tmp_path / "public.pth"
    assert survives(path, whole, read)
    cases = []
    for seed in range(CASES):
        rng = random.Random(seed)
        if seed % 3 == 0:
            cases.append(change_bytes(whole, rng))
        else:
            weights = state["state_dict"]
            key = rng.choice(list(weights))
            changed = {"state_dict": weights | {key: change_tensor(weights[key], rng)}}
            cases.append(saved(changed if seed % 3 == 1 else change_tensor(state, rng)))
    try_all(path, cases, read)
    try_all(path, cases, lambda path: load_backbone(network, path))


@pytest.mark.parametrize(("suffix", "mode"), [(".png", "L"), (".png", "P"), (".tif", "I;16"), (".bmp", "L")])
def test_damaged_masks(suffix: str, mode: str, tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (20, 30))
    picture = Image.fromarray(labels.astype(np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        picture.putpalette(bytes(range(256)) * 3)
    mask, image = tmp_path / f"mask{suffix}", tmp_path / "image.png"
    picture.save(mask)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(image)
    whole = mask.read_bytes()

    def read(path: Path) -> None:
        pair = Pair(name="x", image=image, mask=path)
        data = PairedFiles([pair], "abc", distinct_palette(3), conversion=identity_conversion(3))
        sample = data.read(0)
        assert sample.labels.shape == (20, 30) and set(np.unique(sample.labels)) <= {0, 1, 2, 255}

    assert survives(mask, whole, read)
    try_all(mask, [change_bytes(whole, random.Random(seed)) for seed in range(2 * CASES)], read)


def test_damaged_matlab_masks(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io", reason="MATLAB masks are read by scipy")
    labels = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(np.uint8)
    path = tmp_path / "mask.mat"
    for field, content in {"LabelMap": labels, "GTcls": {"Segmentation": labels}}.items():
        for compressed in (False, True):
            scipy_io.savemat(path, {field: content}, do_compression=compressed)
            whole = path.read_bytes()

            def read(path: Path, field: str = field) -> None:
                mask = pascal.read_mask(path, field=field)
                assert mask.ndim == 2 and np.issubdtype(mask.dtype, np.integer)

            assert survives(path, whole, read)
            try_all(path, [change_bytes(whole, random.Random(seed)) for seed in range(CASES)], read)

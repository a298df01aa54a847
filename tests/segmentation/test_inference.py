"""Segmentors made ready for testing."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import relative_error
from torch import nn

from hamgan.segmentation import inference
from hamgan.segmentation.inference import prepare_for_inference
from hamgan.segmentation.layers import BatchNorm
from hamgan.segmentation.model import SegmentationConfig, Segmentor

CPU = torch.device("cpu")
TINY = SegmentationConfig(
    num_classes=5,
    backbone_dims=(8, 16, 24, 16),
    backbone_depths=(1, 2, 1, 1),
    squeeze_channels=32,
    channels=64,
    rank=4,
)
RESNET: dict[str, Any] = {
    "backbone": "resnet101",
    "backbone_dims": (16, 24, 32, 64),
    "backbone_depths": (1, 2, 1, 2),
    "stem_channels": (4, 6, 8),
}


def lively(config: SegmentationConfig) -> Segmentor:
    """Build a segmentor in evaluation whose every layer matters."""
    torch.manual_seed(0)
    model = Segmentor(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.dim() == 1:
                tensor.add_(torch.randn_like(tensor) * 0.3)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head": "ham_net_plus", "backbone_strides": (4, 2, 1, 1)},
        {"head": "ham_net", **RESNET},
        {"head": "ham_net_voc", "ham_version": "V1", "align_corners": True, **RESNET},
        {"head": "ham_net_voc", "ham_version": "V2", **RESNET},
    ],
    ids=str,
)
def test_the_prepared_copy_is_the_same_function_without_batch_norms(changes: dict[str, Any]) -> None:
    model = lively(replace(TINY, **changes))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ready = prepare_for_inference(model.train(), CPU)
    images = torch.randn(2, 3, 48, 65)
    assert relative_error(ready(images), model.eval()(images)) < 1e-5
    assert not any(isinstance(module, BatchNorm) for module in ready.modules())
    assert not ready.training and not any(parameter.requires_grad for parameter in ready.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_bands_of_rows_join_without_a_seam(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(TINY)
    images = torch.randn(2, 3, 64, 48)
    monkeypatch.setattr(inference, "BAND_BYTES", rows * 2 * 64 * 12 * 4)  # rows of the first stage's hidden map
    assert relative_error(prepare_for_inference(model, CPU)(images), model(images)) < 1e-5


def test_bfloat16_rounds_convolutions_alone_and_stays_near() -> None:
    """Norms keep their digits; logits stay within a few times what one rounding of bfloat16, 2^-8, does to a value."""
    model = lively(TINY)
    ready = prepare_for_inference(model, CPU, "bf16")
    for module in ready.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.dtype == torch.bfloat16
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
            assert module.weight.dtype == torch.float32
    images = torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = ready(images)
    expected = model(images)
    assert float((logits - expected).square().mean().sqrt() / expected.std()) < 0.05


def test_given_bases_reach_the_prepared_copy() -> None:
    model = lively(TINY)
    bases = torch.rand(2, 32, 4)
    images = torch.randn(2, 3, 32, 32)
    ready = prepare_for_inference(model, CPU)
    assert relative_error(ready(images, bases), model(images, bases)) < 1e-5
    assert not torch.allclose(ready(images, bases), ready(images), rtol=1e-3)

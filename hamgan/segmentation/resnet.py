"""ResNet with a deep stem whose last stages are dilated instead of strided.

Source: He et al. 2016; the stem of three 3x3 convolutions is He et al. 2019's (ResNet-C); dilation is Chen et al. 2017's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from hamgan.segmentation.layers import ConvNormReLU, NormFactory

EXPANSION = 4
"""Channels of a block's output over those of its 3x3 convolution."""
STEM_STRIDE = 4


@dataclass(frozen=True, kw_only=True)
class ResNetPlan:
    """Sizes of a ResNet, one entry a stage."""

    dims: tuple[int, ...] = (256, 512, 1024, 2048)
    """Channels of the outputs."""
    depths: tuple[int, ...] = (3, 4, 23, 3)
    """Blocks."""
    strides: tuple[int, ...] = (1, 2, 1, 1)
    """Of the first blocks. A stage after the first that has 1 instead of 2 doubles the dilation from there on."""
    stem_channels: tuple[int, ...] = (32, 32, 64)
    """Outputs of the stem's three convolutions."""
    multi_grid: tuple[int, ...] = (1, 1, 1)
    """What multiplies the dilation of the last stage's blocks; the first one's is halved in any case."""


PUBLISHED_RESNETS: dict[str, ResNetPlan] = {
    "resnet101": ResNetPlan(),
    "resnet101_voc": ResNetPlan(stem_channels=(64, 64, 128), multi_grid=(1, 2, 4)),
}


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided, dilated), 1x1, each with its norm; the shortcut is a 1x1 and a norm where shapes differ.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Of the 3x3 convolution and the shortcut.
        dilation: Of the 3x3 convolution.
        norm: Builds the batch norms.
        project: Whether the shortcut is a 1x1 convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, dilation: int, norm: NormFactory, project: bool
    ) -> None:
        super().__init__()
        hidden = out_channels // EXPANSION
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn1 = norm(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = norm(hidden)
        self.conv3 = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if project:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), norm(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride)."""
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        return F.relu(self.bn3(self.conv3(h)) + self.downsample(x))


class ResNet(nn.Module):
    """Four maps of an image, of strides 4, 8, 8, 8 as published.

    Args:
        plan: Sizes.
        norm: Builds the batch norms.
    """

    def __init__(self, plan: ResNetPlan, *, norm: NormFactory) -> None:
        super().__init__()
        self.dims = plan.dims
        self.stride = STEM_STRIDE
        channels = (3, *plan.stem_channels)
        self.stem = nn.Sequential(
            *(
                ConvNormReLU(channels[index], channels[index + 1], 3, norm=norm, stride=2 if index == 0 else 1)
                for index in range(len(plan.stem_channels))
            )
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        in_channels, dilation = channels[-1], 1
        stages = []
        for index, (dim, depth, stride) in enumerate(zip(plan.dims, plan.depths, plan.strides, strict=True)):
            self.stride *= stride
            dilation *= 2 if index > 0 and stride == 1 else 1
            grid = plan.multi_grid if index == len(plan.dims) - 1 else (1,)
            dilations = [
                max(dilation // 2, 1) if block == 0 else dilation * grid[min(block, len(grid) - 1)]
                for block in range(depth)
            ]
            stages.append(_stage(in_channels, dim, stride=stride, dilations=dilations, norm=norm))
            in_channels = dim
        self.stages = nn.ModuleList(stages)
        self.apply(_initialize)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the stages' outputs of images (B, 3, H, W), finest first."""
        maps = []
        x = self.pool(self.stem(images))
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps)


def _stage(
    in_channels: int, out_channels: int, *, stride: int, dilations: Sequence[int], norm: NormFactory
) -> nn.Sequential:
    """Build a stage of one block for each dilation; the first one changes shape."""
    return nn.Sequential(
        *(
            Bottleneck(
                in_channels if index == 0 else out_channels,
                out_channels,
                stride=stride if index == 0 else 1,
                dilation=dilation,
                norm=norm,
                project=index == 0 and (stride != 1 or in_channels != out_channels),
            )
            for index, dilation in enumerate(dilations)
        )
    )


def _initialize(module: nn.Module) -> None:
    """Draw a convolution's weights from N(0, sqrt(2 / fan_out)) (He et al. 2015)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

"""EfficientNet-Lite0 as a backbone: small, and its ImageNet weights come inside a package, without a download."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hamgan.nn.efficientnet_lite import MEAN, STAGES, STD, STRIDES, EfficientNetLite0Blocks
from hamgan.segmentation.dataset import MEAN as DATA_MEAN
from hamgan.segmentation.dataset import STD as DATA_STD
from hamgan.segmentation.layers import NormFactory

_ENDS = (1, 2, 4, 6)
"""The network's stages, from 0, that a backbone's four stages end with."""
_REDUCTIONS = ((0, 2), (3,), (4,), (6,))
"""Places in STRIDES of the strides of 2 of each of the four stages."""


@dataclass(frozen=True, kw_only=True)
class EfficientNetPlan:
    """Strides of the four stages; a first one of 2 or 1 leaves the stem, and then the first reduction, at full resolution."""

    dims: tuple[int, ...] = tuple(STAGES[end][-1] for end in _ENDS)
    """Channels of the outputs."""
    strides: tuple[int, ...] = (4, 2, 2, 2)
    """Of the stages: 1 or 2, the first one also 4."""

    def __post_init__(self) -> None:
        if any(stride not in (1, 2, 4)[: 3 if index == 0 else 2] for index, stride in enumerate(self.strides)):
            raise ValueError(
                f"backbone_strides is {list(self.strides)}; EfficientNet-Lite0's are 1, 2 or 4, and then 1 or 2"
            )

    def block_strides(self) -> tuple[int, ...]:
        """Return the strides of the stem and of the first blocks of the network's seven stages."""
        strides = list(STRIDES)
        for stride, places in zip(self.strides, _REDUCTIONS, strict=True):
            for place in places[: len(places) - stride.bit_length() + 1]:
                strides[place] = 1
        return tuple(strides)


class EfficientNet(EfficientNetLite0Blocks):
    """Four maps of an image, of strides 4, 8, 16, 32 as published, with 24, 40, 112 and 320 channels.

    Args:
        plan: Its strides.
        norm: Builds the batch norms.
    """

    input_scale: Tensor
    input_offset: Tensor

    def __init__(self, plan: EfficientNetPlan, *, norm: NormFactory) -> None:
        super().__init__(strides=plan.block_strides(), norm=norm)
        self.dims = plan.dims
        self.stride = 1
        for stride in plan.strides:
            self.stride *= stride
        std = torch.tensor(DATA_STD)[:, None, None] / STD
        self.register_buffer("input_scale", std, persistent=False)
        offset = (torch.tensor(DATA_MEAN)[:, None, None] - MEAN) / STD
        self.register_buffer("input_offset", offset, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the stages' outputs of images (B, 3, H, W), normalised as the data are, finest first."""
        outputs = tuple(self.stage_outputs(torch.addcmul(self.input_offset, images, self.input_scale)))
        return tuple(outputs[end] for end in _ENDS)

"""The Visual Attention Network: four stages of large-kernel attention and convolutional MLPs.

Source: Guo et al. 2022, "Visual Attention Network", sections 3.2 and 3.3, table 2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamgan.segmentation.layers import ChannelLayerNorm, DilatedDepthwiseConv, DropPath, NormFactory

LAYER_SCALE = 1e-2
"""Initial layer scale as published."""
LAYER_NORM_EPS = 1e-5
"""As the public segmentation code computes: its outputs tell 1e-5 from the ImageNet classifier's 1e-6."""


@dataclass(frozen=True, kw_only=True)
class VANPlan:
    """Sizes of a VAN, one entry a stage."""

    dims: tuple[int, ...]
    """Channels."""
    depths: tuple[int, ...]
    """Blocks."""
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    """Hidden channels of the MLPs over the stage's channels."""
    strides: tuple[int, ...] = (4, 2, 2, 2)
    """Of the patch embeddings."""


PUBLISHED_VANS: dict[str, VANPlan] = {
    "van_tiny": VANPlan(dims=(32, 64, 160, 256), depths=(3, 3, 5, 2)),
    "van_small": VANPlan(dims=(64, 128, 320, 512), depths=(2, 2, 4, 2)),
    "van_base": VANPlan(dims=(64, 128, 320, 512), depths=(3, 3, 12, 3)),
    "van_large": VANPlan(dims=(64, 128, 320, 512), depths=(3, 5, 27, 3)),
    "van_huge": VANPlan(dims=(64, 128, 320, 512), depths=(3, 6, 40, 3)),
}


class LargeKernelAttention(nn.Module):
    """y + proj_out(u * attention(u)) with u = GELU(proj_in(y)).

    The attention is a 21x21 receptive field in three convolutions: depthwise 5x5, depthwise 7x7 dilated by 3, pointwise.

    Args:
        dim: Channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(dim, dim, 1)
        self.local = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.dilated = DilatedDepthwiseConv(dim, 7, dilation=3)
        self.pointwise = nn.Conv2d(dim, dim, 1)
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, y: Tensor) -> Tensor:
        """(B, dim, H, W) -> same shape."""
        return y + self.branch(y)

    def branch(self, y: Tensor) -> Tensor:
        """Return what is added to y; same shape."""
        u = F.gelu(self.proj_in(y))
        return self.proj_out(u * self.pointwise(self.dilated(self.local(u))))


class ConvMLP(nn.Module):
    """Pointwise map, depthwise 3x3, GELU, pointwise map.

    Args:
        dim: Channels in and out.
        hidden: Channels between.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> same shape."""
        return self.fc2(F.gelu(self.depthwise(self.fc1(x))))


class VANBlock(nn.Module):
    """x += scale1 * attention(norm1(x)); x += scale2 * mlp(norm2(x)).

    Args:
        dim: Channels.
        mlp_ratio: Hidden channels of the MLP over dim.
        drop_path: Probability of leaving a branch out in training.
        norm: Builds the batch norms.
        layer_scale: Initial layer scale.
    """

    def __init__(
        self, dim: int, *, mlp_ratio: int, drop_path: float, norm: NormFactory, layer_scale: float = LAYER_SCALE
    ) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.attention = LargeKernelAttention(dim)
        self.scale1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.norm2 = norm(dim)
        self.mlp = ConvMLP(dim, dim * mlp_ratio)
        self.scale2 = nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> same shape."""
        scale1, scale2 = (scale.to(x.dtype)[:, None, None] for scale in (self.scale1, self.scale2))
        x = x + self.drop_path(scale1 * self.attention(self.norm1(x)))
        return x + self.drop_path(scale2 * self.mlp(self.norm2(x)))


class VANStage(nn.Module):
    """Overlapping patch embedding, blocks, layer norm; the normed map is the stage's output and the next stage's input.

    Args:
        in_channels: Channels of the input.
        dim: Channels of the stage.
        kernel_size: Of the patch embedding: 7 in the first stage, 3 in the others.
        stride: Of the patch embedding.
        mlp_ratio: Hidden channels of the MLPs over dim.
        drop_paths: Probability of leaving a branch out, one for each block.
        norm: Builds the batch norms.
        layer_scale: Initial layer scale of the blocks.
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        *,
        kernel_size: int,
        stride: int,
        mlp_ratio: int,
        drop_paths: Sequence[float],
        norm: NormFactory,
        layer_scale: float,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(in_channels, dim, kernel_size, stride, kernel_size // 2)
        self.embed_norm = norm(dim)
        self.blocks = nn.ModuleList(
            VANBlock(dim, mlp_ratio=mlp_ratio, drop_path=rate, norm=norm, layer_scale=layer_scale)
            for rate in drop_paths
        )
        self.norm = ChannelLayerNorm(dim, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, dim, H / stride, W / stride), rounded up."""
        x = self.embed_norm(self.embed(x))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class VAN(nn.Module):
    """Four maps of an image, of strides 4, 8, 16, 32 as published.

    Args:
        plan: Sizes.
        drop_path: Of the last block; grows linearly from 0 over all blocks.
        norm: Builds the batch norms.
        layer_scale: Initial layer scale of the blocks.

    Source: Guo et al. 2022.
    """

    def __init__(self, plan: VANPlan, *, drop_path: float, norm: NormFactory, layer_scale: float = LAYER_SCALE) -> None:
        super().__init__()
        self.dims = plan.dims
        self.stride = math.prod(plan.strides)
        rates = iter(torch.linspace(0, drop_path, sum(plan.depths), device="cpu").tolist())
        self.stages = nn.ModuleList(
            VANStage(
                in_channels,
                dim,
                kernel_size=7 if index == 0 else 3,
                stride=plan.strides[index],
                mlp_ratio=plan.mlp_ratios[index],
                drop_paths=[next(rates) for _ in range(plan.depths[index])],
                norm=norm,
                layer_scale=layer_scale,
            )
            for index, (in_channels, dim) in enumerate(zip((3, *plan.dims[:-1]), plan.dims, strict=True))
        )
        self.apply(_initialize)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the stages' outputs of images (B, 3, H, W), finest first."""
        maps = []
        x = images
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps)


def _initialize(module: nn.Module) -> None:
    """Draw a convolution's weights from N(0, sqrt(2 / fan_out)) and zero its bias (the public code)."""
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)

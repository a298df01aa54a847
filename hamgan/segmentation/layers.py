"""Layers that backbones and heads share: norms, a convolution with its norm, drop path, bilinear resizing."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamgan.nn.norm import RunningStatistics

NormFactory = Callable[[int], nn.Module]
"""Builds the norm of a map from its number of channels."""


class BatchNorm(RunningStatistics):
    """Batch norm with one gain (`weight`) and one bias a channel, across replicas if asked.

    Args:
        num_channels: Channels C of the maps.
        eps: Added to the variance; dimensionless.
        momentum: Weight of the new batch in the running averages, in (0, 1].
        cross_replica: Whether the statistics in training are those of the batch over all processes.
    """

    def __init__(
        self, num_channels: int, *, eps: float = 1e-5, momentum: float = 0.1, cross_replica: bool = True
    ) -> None:
        super().__init__(num_channels, eps=eps, momentum=momentum, cross_replica=cross_replica)
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        return self.normalize(x, self.weight, self.bias)


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm of every pixel over its channels."""

    def __init__(self, num_channels: int, *, eps: float) -> None:
        super().__init__(num_channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W); the result is laid out as channels_last."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GroupNorm(nn.GroupNorm):
    """Group norm that is always computed in float32: on a CPU faster than in bfloat16, forward and backward."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        normed = F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
        return normed.to(x.dtype)


class ConvNormReLU(nn.Module):
    """A convolution with same padding and no bias, its norm, ReLU.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: 1 or 3.
        norm: Builds the norm.
        stride: Of the convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, norm: NormFactory, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv: nn.Module = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.norm = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride), non-negative."""
        return F.relu(self.norm(self.conv(x)))


class DilatedDepthwiseConv(nn.Conv2d):
    """A depthwise convolution with same padding of every d-th pixel.

    On a CPU it is computed as an undilated one on the d * d maps of every d-th pixel, laid side by side as a batch: the same
    sums, several times faster than the library's dilated kernel (benchmarks/segmentation_dilated.py).

    Args:
        dim: Channels.
        kernel_size: Odd.
        dilation: d.
    """

    def __init__(self, dim: int, kernel_size: int, *, dilation: int) -> None:
        super().__init__(dim, dim, kernel_size, padding=dilation * (kernel_size // 2), dilation=dilation, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> same shape."""
        if x.device.type != "cpu":
            return super().forward(x)
        height, width = x.shape[2:]
        step = self.dilation[0]
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        parts = _every_nth_pixel(F.pad(x, (0, -width % step, 0, -height % step)), step)
        padding = (self.kernel_size[0] // 2, self.kernel_size[1] // 2)
        parts = F.conv2d(parts, self.weight, self.bias, padding=padding, groups=self.groups)
        return _interleaved(parts, step, channels_last)[:, :, :height, :width]


def _every_nth_pixel(x: Tensor, step: int) -> Tensor:
    """(B, C, n h, n w) -> (n n B, C, h, w), in channels_last, which depthwise convolutions are fastest in."""
    grid = x.unflatten(3, (-1, step)).unflatten(2, (-1, step))  # (B, C, h, n, w, n)
    return grid.permute(3, 5, 0, 2, 4, 1).flatten(0, 2).permute(0, 3, 1, 2)


def _interleaved(parts: Tensor, step: int, channels_last: bool) -> Tensor:
    """Undo `_every_nth_pixel`, into channels_last or NCHW."""
    grid = parts.unflatten(0, (step, step, -1))  # (n, n, B, C, h, w)
    if channels_last:
        return grid.permute(2, 4, 0, 5, 1, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
    return grid.permute(2, 3, 4, 0, 5, 1).flatten(4, 5).flatten(2, 3)


class DropPath(nn.Module):
    """Leaves a residual branch out for whole samples in training and scales the others up (stochastic depth).

    Args:
        rate: Probability of leaving out, in [0, 1).

    Source: Huang et al. 2016.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Zero samples of (B, C, H, W) in training; change nothing in evaluation."""
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)


class BilinearResize(nn.Module):
    """Bilinear interpolation to a size.

    Args:
        align_corners: Whether corner pixels keep their values, rather than image borders their places.
    """

    def __init__(self, *, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners

    def forward(self, x: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
        """(B, C, h, w) -> (B, C, H, W) for size (H, W)."""
        if x.shape[2:] == torch.Size(size):
            return x
        resized = F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=self.align_corners)
        if resized.requires_grad and x.is_contiguous(memory_format=torch.channels_last):
            resized.register_hook(_in_channels_last)
        return resized


def _in_channels_last(gradient: Tensor) -> Tensor:
    """Lay a gradient out as its map is: that of a part of a concatenation has gaps, through which resizing goes slowly."""
    return gradient.contiguous(memory_format=torch.channels_last)

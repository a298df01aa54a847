"""Residual blocks of generator and discriminator, and the choice of their context block."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from hamgan.nn.attention import SelfAttention
from hamgan.nn.hamburger import Hamburger, HamburgerConfig
from hamgan.nn.norm import ConditionalNormFactory
from hamgan.nn.precision import compute_dtype
from hamgan.nn.resample import add_upsampled, downsample, relu_and_downsample
from hamgan.nn.spectral_norm import SNConv2d, SpectralNormConfig

ContextKind = Literal["ham", "attention", "none"]
ContextBlock = Hamburger | SelfAttention


class GBlock(nn.Module):
    """norm, ReLU, nearest upsampling, conv, norm, ReLU, conv; shortcut: upsampling and a pointwise map.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        spectral_norm: Of the three convolutions.
        norm: Builds a conditional norm from a number of channels.

    Source: Brock et al. 2019, figure 15 (a); Zhang et al. 2019 as released.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, spectral_norm: SpectralNormConfig, norm: ConditionalNormFactory
    ) -> None:
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = SNConv2d(in_channels, out_channels, 3, spectral_norm=spectral_norm)
        self.norm2 = norm(out_channels)
        self.conv2 = SNConv2d(out_channels, out_channels, 3, spectral_norm=spectral_norm)
        self.shortcut = SNConv2d(in_channels, out_channels, 1, spectral_norm=spectral_norm)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Double the resolution: (B, in_channels, H, W) under the condition c -> (B, out_channels, 2H, 2W)."""
        h = self.conv1.upsampled(self.norm1(x, c, relu=True))
        h = self.conv2(self.norm2(h, c, relu=True))
        return add_upsampled(h, self.shortcut(x))  # a pointwise map and upsampling commute


class DBlock(nn.Module):
    """(ReLU), conv, ReLU, conv, average pooling; shortcut: pooling and a pointwise map where shapes differ.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        hidden_channels: Channels between the convolutions.
        preactivation: Whether a ReLU comes first; the block on the image has none.
        downsampling: Whether the resolution is halved.
        spectral_norm: Of the convolutions.

    Source: Brock et al. 2019, figure 15 (b); Zhang et al. 2019 as released.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden_channels: int,
        preactivation: bool,
        downsampling: bool,
        spectral_norm: SpectralNormConfig,
    ) -> None:
        super().__init__()
        self.preactivation = preactivation
        self.downsampling = downsampling
        self.conv1 = SNConv2d(in_channels, hidden_channels, 3, spectral_norm=spectral_norm)
        self.conv2 = SNConv2d(hidden_channels, out_channels, 3, spectral_norm=spectral_norm)
        self.shortcut: SNConv2d | None = None
        if downsampling or in_channels != out_channels:
            self.shortcut = SNConv2d(in_channels, out_channels, 1, spectral_norm=spectral_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H', W'), H' = H / 2 where downsampling."""
        x = x.to(compute_dtype(x))
        # Pooling first is exact: a pointwise map and an average commute, in either block order of the public codes.
        if self.preactivation and self.downsampling:
            h, shortcut = relu_and_downsample(x)
        else:
            h, shortcut = F.relu(x) if self.preactivation else x, downsample(x) if self.downsampling else x
        if self.downsampling:  # the first one's bias and ReLU are taken where the second one's input is made
            h = self.conv2.downsampled(self.conv1(h, bias=False), before=self.conv1.bias, relu=True)
        else:
            h = self.conv2(self.conv1(h, relu=True))
        return h.add_(shortcut if self.shortcut is None else self.shortcut(shortcut))


def build_context(
    kind: ContextKind,
    channels: int,
    resolution: int,
    *,
    ham: HamburgerConfig,
    spectral_norm: SpectralNormConfig,
    norm: ConditionalNormFactory | None,
) -> ContextBlock | None:
    """Build the context block of a map of `channels` at `resolution`, or None.

    Args:
        kind: ham, attention or none.
        channels: Channels of the map.
        resolution: Height and width of the map, pixels.
        ham: The Hamburger's configuration; unused by the others.
        spectral_norm: Of the block's pointwise maps.
        norm: Builds the Hamburger's conditional norm; None: it has none.
    """
    if kind == "ham":
        return Hamburger(channels, resolution, ham, spectral_norm=spectral_norm, norm=norm)
    if kind == "attention":
        return SelfAttention(channels, spectral_norm=spectral_norm)
    return None

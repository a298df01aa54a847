"""Decoder heads: what turns a backbone's maps into logits of lower resolution.

Source: Geng et al. 2021, section 4.2; Guo et al. 2022, section 4.3 (Light-Ham).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hamgan.segmentation.hamburger import Hamburger
from hamgan.segmentation.layers import BilinearResize, ConvNormReLU, NormFactory


class HamHead(nn.Module):
    """Squeeze, Hamburger, align, (concatenation with the input and a convolution), classify; of every published head.

    Args:
        in_channels: Channels of the input.
        squeeze_channels: Channels that the Hamburger sees.
        channels: Channels that are classified.
        num_classes: Number of classes.
        kernel_size: Of squeeze and align: 1 (Light-Ham) or 3 (HamNet).
        hamburger: The context block on `squeeze_channels`; None: nothing in its place.
        concatenate: Whether the input and the aligned map pass through a 3x3 convolution together (HamNet+).
        dropout: Probability of dropping a channel before classification in training.
        norm: Builds the norms.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        squeeze_channels: int,
        channels: int,
        num_classes: int,
        kernel_size: int,
        hamburger: Hamburger | None,
        concatenate: bool,
        dropout: float,
        norm: NormFactory,
    ) -> None:
        super().__init__()
        self.squeeze = ConvNormReLU(in_channels, squeeze_channels, kernel_size, norm=norm)
        self.hamburger = hamburger
        self.align = ConvNormReLU(squeeze_channels, channels, kernel_size, norm=norm)
        self.concatenated = ConvNormReLU(in_channels + channels, channels, 3, norm=norm) if concatenate else None
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, num_classes, 1)
        self.apply(_initialize)
        _initialize_classifier(self.classify)

    def forward(self, x: Tensor, bases: Tensor | None = None) -> Tensor:
        """Classify pixels.

        Args:
            x: Features, (B, in_channels, H, W).
            bases: Initial bases of the Hamburger, (B, D, R) or (1, D, R); None for its own.

        Returns:
            Logits, (B, num_classes, H, W).
        """
        h = self.squeeze(x)
        if self.hamburger is not None:
            h = self.hamburger(h, bases)
        h = self.align(h)
        if self.concatenated is not None:
            h = self.concatenated(torch.cat([x, h], 1))
        return self.classify(self.dropout(h))


class MultiLevelInput(nn.Module):
    """Stages 2, 3 and 4, resized to the size of stage 2 and concatenated: the input of Light-Ham."""

    def __init__(self, *, align_corners: bool) -> None:
        super().__init__()
        self.resize = BilinearResize(align_corners=align_corners)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps (B, C_s, H_s, W_s) -> (B, C_2 + C_3 + C_4, H_2, W_2)."""
        return torch.cat([self.resize(x, maps[1].shape[2:]) for x in maps[1:]], 1)


class LastInput(nn.Module):
    """Stage 4 alone: the input of HamNet."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps -> the last one."""
        return maps[-1]


class AuxiliaryHead(nn.Module):
    """A fully convolutional head on stage 3, for the loss in training alone: 3x3, norm, ReLU, dropout, 1x1.

    Args:
        in_channels: Channels of stage 3.
        channels: Channels that are classified.
        num_classes: Number of classes.
        dropout: Probability of dropping a channel before classification in training.
        norm: Builds the norm.
    """

    def __init__(self, in_channels: int, *, channels: int, num_classes: int, dropout: float, norm: NormFactory) -> None:
        super().__init__()
        self.conv = ConvNormReLU(in_channels, channels, 3, norm=norm)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, num_classes, 1)
        self.apply(_initialize)
        _initialize_classifier(self.classify)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps -> logits (B, num_classes, H_3, W_3)."""
        return self.classify(self.dropout(self.conv(maps[-2])))


def _initialize(module: nn.Module) -> None:
    """Draw a convolution's weights from N(0, sqrt(2 / fan_out)) and zero its bias (He et al. 2015)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _initialize_classifier(classify: nn.Conv2d) -> None:
    nn.init.normal_(classify.weight, std=0.01)
    assert classify.bias is not None
    nn.init.zeros_(classify.bias)

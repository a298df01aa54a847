"""The projection discriminator: an image and a class to a logit."""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamgan.models.arch import discriminator_plan
from hamgan.nn.blocks import ContextKind, DBlock, build_context
from hamgan.nn.hamburger import HamburgerConfig
from hamgan.nn.init import WeightInit, initialize
from hamgan.nn.recompute import recomputed
from hamgan.nn.spectral_norm import SNEmbedding, SNLinear, SpectralNormConfig


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """A discriminator's architecture. The defaults are BigGAN's at 128x128 with attention."""

    resolution: Literal[32, 64, 128, 256] = 128
    """Height and width of the images, pixels."""
    channels: int = 96
    """Unit of width; the published plan multiplies it."""
    channel_multipliers: tuple[int, ...] = ()
    """Widths after each block in units of `channels`; empty: the published plan of the resolution."""
    num_classes: int = 1000
    """Number of classes."""
    wide: bool = True
    """Whether a block's hidden width is its output's (SAGAN, BigGAN) or its input's (SN-GAN)."""
    context: ContextKind = "attention"
    """The context block."""
    context_resolutions: tuple[int, ...] = (64,)
    """A context block follows every block whose output has one of these resolutions."""
    ham: HamburgerConfig = field(default_factory=lambda: HamburgerConfig(rank=16))
    """The Hamburger, where context is ham."""
    spectral_norm: SpectralNormConfig = field(default_factory=SpectralNormConfig)
    """Spectral normalisation of all maps and of the class embedding."""
    weight_init: WeightInit = "orthogonal"
    """Initial weights."""

    def __post_init__(self) -> None:
        discriminator_plan(self.resolution, self.channels, self.channel_multipliers, self.context_resolutions)
        for name in ("channels", "num_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"discriminator.{name} is {getattr(self, name)}; it must be at least 1")


class Discriminator(nn.Module):
    """D(x, y) = w' h(x) + b + e_y' h(x), h the sum-pooled features.

    Source: Miyato & Koyama 2018, equation 3; blocks of Brock et al. 2019, figure 15 (b).
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        plan = discriminator_plan(
            config.resolution, config.channels, config.channel_multipliers, config.context_resolutions
        )
        self.blocks = nn.ModuleList(
            DBlock(
                block.in_channels,
                block.out_channels,
                hidden_channels=block.out_channels if config.wide else block.in_channels,
                preactivation=index > 0,
                downsampling=block.resampling,
                spectral_norm=config.spectral_norm,
            )
            for index, block in enumerate(plan)
        )
        self.contexts = nn.ModuleList(
            build_context(
                config.context if block.context else "none",
                block.out_channels,
                block.resolution,
                ham=config.ham,
                spectral_norm=config.spectral_norm,
                norm=None,
            )
            or nn.Identity()
            for block in plan
        )
        self.linear = SNLinear(plan[-1].out_channels, 1, spectral_norm=config.spectral_norm)
        self.embedding = SNEmbedding(config.num_classes, plan[-1].out_channels, spectral_norm=config.spectral_norm)
        self.recompute = False
        initialize(self, config.weight_init)

    def forward(self, x: Tensor, y: Tensor, bases: Tensor | None = None) -> Tensor:
        """Judge images.

        Args:
            x: Images in [-1, 1], (B, 3, resolution, resolution).
            y: Classes, int64 (B,), in [0, num_classes).
            bases: Initial bases of the Hamburger, (B * S, D, R) or (1, D, R); or int64 keys (B,), one a sample, that the
                fresh bases of training follow; None: drawn in training, stored in evaluation.

        Returns:
            Logits, (B, 1); higher is more real.
        """
        return self.judge(self.features(x, bases), y)

    def judge(self, h: Tensor, y: Tensor) -> Tensor:
        """Return the logits (B, 1) of features (B, C), as `features` returns them, and classes (B,)."""
        return self.linear(h) + (self.embedding(y) * h).sum(1, keepdim=True)

    def features(self, x: Tensor, bases: Tensor | None = None) -> Tensor:
        """Return the sum-pooled features, (B, channels of the last block), float32; arguments as in `forward`."""
        h = x.contiguous(memory_format=torch.channels_last)
        for block, context in zip(self.blocks, self.contexts, strict=True):
            h = recomputed(block, h) if self.recompute and self.training else block(h)
            if not isinstance(context, nn.Identity):
                h = context(h, None, bases)
        return F.relu(h).sum((2, 3), dtype=torch.float32)

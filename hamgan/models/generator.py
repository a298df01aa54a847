"""The generator: z and a class to an image."""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from hamgan.models.arch import generator_plan
from hamgan.nn.blocks import ContextKind, GBlock, build_context
from hamgan.nn.class_table import ClassTable
from hamgan.nn.hamburger import HamburgerConfig
from hamgan.nn.init import WeightInit, initialize
from hamgan.nn.norm import BatchNorm, ConditionalBatchNorm
from hamgan.nn.recompute import recomputed
from hamgan.nn.spectral_norm import SNConv2d, SNLinear, SpectralNormConfig

INITIAL_RESOLUTION = 4


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """A generator's architecture. The defaults are BigGAN's at 128x128 with attention."""

    resolution: Literal[32, 64, 128, 256] = 128
    """Height and width of the images, pixels."""
    channels: int = 96
    """Unit of width; the published plan multiplies it."""
    channel_multipliers: tuple[int, ...] = ()
    """Widths at 4x4 and after each block in units of `channels`; empty: the published plan of the resolution."""
    num_classes: int = 1000
    """Number of classes."""
    z_dim: int = 120
    """Length of z; divisible by the number of blocks + 1 where hierarchical."""
    conditioning: Literal["shared", "per_class"] = "shared"
    """shared: one class embedding, mapped linearly to each norm's gain and bias; per_class: tables in each norm."""
    embedding_dim: int = 128
    """Length of the shared class embedding."""
    hierarchical: bool = True
    """Whether z is split: the first chunk into the linear layer, one more into each block's condition (shared only)."""
    context: ContextKind = "attention"
    """The context block."""
    context_resolutions: tuple[int, ...] = (64,)
    """A context block follows every block whose output has one of these resolutions."""
    ham: HamburgerConfig = field(default_factory=HamburgerConfig)
    """The Hamburger, where context is ham."""
    spectral_norm: SpectralNormConfig = field(default_factory=SpectralNormConfig)
    """Spectral normalisation of all maps but the class embedding."""
    batch_norm_eps: float = 1e-5
    """Added to variances; dimensionless."""
    batch_norm_momentum: float = 0.1
    """Weight of a new batch in the running statistics."""
    cross_replica: bool = True
    """Whether batch norm in training uses the statistics over all processes."""
    weight_init: WeightInit = "orthogonal"
    """Initial weights."""

    def __post_init__(self) -> None:
        plan = generator_plan(self.resolution, self.channels, self.channel_multipliers, self.context_resolutions)
        for name in ("channels", "num_classes", "z_dim", "embedding_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"generator.{name} is {getattr(self, name)}; it must be at least 1")
        if self.hierarchical and self.conditioning == "per_class":
            raise ValueError(
                "generator.hierarchical is true; per_class tables cannot hold chunks of z: set it to false"
            )
        if self.hierarchical and self.z_dim % (len(plan) + 1):
            raise ValueError(
                f"generator.z_dim is {self.z_dim}; a hierarchical z at {self.resolution} is split into {len(plan) + 1} "
                "chunks of equal length"
            )
        if not self.batch_norm_eps > 0:
            raise ValueError(f"generator.batch_norm_eps is {self.batch_norm_eps}; it must be > 0")
        if not 0 < self.batch_norm_momentum <= 1:
            raise ValueError(f"generator.batch_norm_momentum is {self.batch_norm_momentum}; it must be in (0, 1]")


class Generator(nn.Module):
    """G(z, y).

    Source: Brock et al. 2019, appendix B; Zhang et al. 2019; Geng et al. 2021, section 4.3.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        plan = generator_plan(
            config.resolution, config.channels, config.channel_multipliers, config.context_resolutions
        )
        self.num_chunks = len(plan) + 1 if config.hierarchical else 1
        chunk = config.z_dim // self.num_chunks
        shared = config.conditioning == "shared"
        self.embedding = ClassTable(config.num_classes, config.embedding_dim) if shared else None
        extra = chunk if config.hierarchical else 0
        norm = partial(
            ConditionalBatchNorm,
            condition=config.conditioning,
            condition_dim=config.embedding_dim + extra if shared else config.num_classes,
            spectral_norm=config.spectral_norm,
            eps=config.batch_norm_eps,
            momentum=config.batch_norm_momentum,
            cross_replica=config.cross_replica,
        )
        self.linear = SNLinear(chunk, plan[0].in_channels * INITIAL_RESOLUTION**2, spectral_norm=config.spectral_norm)
        self.blocks = nn.ModuleList(
            GBlock(block.in_channels, block.out_channels, spectral_norm=config.spectral_norm, norm=norm)
            for block in plan
        )
        self.contexts = nn.ModuleList(
            build_context(
                config.context if block.context else "none",
                block.out_channels,
                block.resolution,
                ham=config.ham,
                spectral_norm=config.spectral_norm,
                norm=norm,
            )
            or nn.Identity()
            for block in plan
        )
        self.output_norm = BatchNorm(
            plan[-1].out_channels,
            eps=config.batch_norm_eps,
            momentum=config.batch_norm_momentum,
            cross_replica=config.cross_replica,
        )
        self.output_conv = SNConv2d(plan[-1].out_channels, 3, 3, spectral_norm=config.spectral_norm)
        self.recompute = False
        initialize(self, config.weight_init)

    def forward(self, z: Tensor, y: Tensor, bases: Tensor | None = None) -> Tensor:
        """Draw images.

        Args:
            z: Latents, (B, z_dim), N(0, 1).
            y: Classes, int64 (B,), in [0, num_classes); or mixtures of classes, weights (B, num_classes).
            bases: Initial bases of the Hamburger, (B * S, D, R) or (1, D, R); or int64 keys (B,), one a sample, that the
                fresh bases of training follow; None: drawn in training, stored in evaluation.

        Returns:
            Images in [-1, 1], (B, 3, resolution, resolution), float32 outside autocast.
        """
        return self.synthesize(z, self.embed(y), bases)

    def embed(self, y: Tensor) -> Tensor:
        """Return the condition of classes (B,) or mixtures (B, num_classes): vectors where shared, else y itself."""
        return y if self.embedding is None else self.embedding(y)

    def synthesize(self, z: Tensor, c: Tensor, bases: Tensor | None = None) -> Tensor:
        """Draw images from latents and embedded conditions, as `embed` returns them; the rest as in `forward`."""
        chunks = z.chunk(self.num_chunks, dim=1)
        h = self.linear(chunks[0]).unflatten(1, (-1, INITIAL_RESOLUTION, INITIAL_RESOLUTION))
        h = h.contiguous(memory_format=torch.channels_last)
        for index, (block, context) in enumerate(zip(self.blocks, self.contexts, strict=True)):
            condition = torch.cat([c, chunks[index + 1]], 1) if self.num_chunks > 1 else c
            h = recomputed(block, h, condition) if self.recompute and self.training else block(h, condition)
            if not isinstance(context, nn.Identity):
                h = context(h, condition, bases)
        return torch.tanh(self.output_conv(self.output_norm(h, relu=True)))

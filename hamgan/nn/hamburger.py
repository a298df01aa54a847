"""The Hamburger: lower bread -> ham (a matrix decomposition) -> (cheese) -> upper bread, as a gated residual context block."""

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamgan.nn.decomposition import CD, NMF, VQ, BasesMode, Gradient, MatrixDecomposition
from hamgan.nn.gate import gated_sum
from hamgan.nn.norm import ConditionalNormFactory
from hamgan.nn.spectral_norm import SNConv2d, SpectralNormConfig

H = TypeVar("H", bound=MatrixDecomposition)


@dataclass(frozen=True, kw_only=True)
class HamburgerConfig:
    """One Hamburger block. The defaults are the official HamGAN generator's."""

    kind: Literal["NMF", "VQ", "CD"] = "NMF"
    """The matrix decomposition."""
    version: Literal["V1", "V2", "V2+"] = "V1"
    """V1: norm after the upper bread. V2: a cheese (pointwise map, norm, ReLU) before it, no norm after. V2+: V2 with a
    gate on the shortcut too."""
    layout: Literal["spatial", "channel", "dual"] = "spatial"
    """What a column is: a pixel's channels (spatial), a channel's pixels (channel), or both side by side (dual, V2+ only)."""
    rank: int = 32
    """Number of bases R."""
    latent_channels: int = 0
    """Channels of one section after the lower bread; 0: the map's own."""
    num_sections: int = 1
    """Number S of independent decompositions side by side."""
    train_steps: int = 6
    """Steps K in training."""
    eval_steps: int = 6
    """Steps K in evaluation."""
    gradient: Gradient = "one_step"
    """one_step: only the last code update is differentiated; unrolled: all K steps."""
    bases: BasesMode = "random"
    """random: drawn anew at every training forward; online: stored, following what the steps find."""
    normalize_bases: bool = True
    """Whether a fresh draw has unit columns; the official TensorFlow HamGAN's NMF does not normalise."""
    inv_t: float = 0.0
    """Inverse temperature of the softmax over bases; 0: the published one (NMF 1, VQ and CD 100)."""
    beta: float = 0.1
    """Ridge weight of CD's last regression; 0.01 in the official HamGAN."""
    eta: float = 0.9
    """Rate at which online bases follow, in (0, 1]."""
    seed: int = 0
    """Of the stored bases that evaluation uses."""

    def __post_init__(self) -> None:
        for name in ("rank", "num_sections"):
            if getattr(self, name) < 1:
                raise ValueError(f"ham.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("latent_channels", "train_steps", "eval_steps", "inv_t"):
            if getattr(self, name) < 0:
                raise ValueError(f"ham.{name} is {getattr(self, name)}; it must be at least 0")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"ham.seed is {self.seed}; it must be in [0, 2**63)")
        if not 0 < self.eta <= 1:
            raise ValueError(f"ham.eta is {self.eta}; it must be in (0, 1]")
        if not self.beta > 0:
            raise ValueError(f"ham.beta is {self.beta}; it must be > 0")
        if self.layout == "dual" and self.version != "V2+":
            raise ValueError(f"ham.layout is dual with version {self.version}; two hams side by side need version V2+")


def build_decomposition(config: HamburgerConfig, dim: int) -> MatrixDecomposition:
    """Build the ham of a block whose columns have length `dim`."""

    def built(kind: type[H]) -> H:
        return kind(
            dim,
            config.rank,
            train_steps=config.train_steps,
            eval_steps=config.eval_steps,
            inv_t=config.inv_t or None,
            gradient=config.gradient,
            bases_mode=config.bases,
            normalize_bases=config.normalize_bases,
            eta=config.eta,
            seed=config.seed,
            num_sections=config.num_sections,
        )

    if config.kind == "CD":
        ham = built(CD)
        ham.beta = config.beta
        return ham
    return built(NMF) if config.kind == "NMF" else built(VQ)


class Hamburger(nn.Module):
    """x + gate * burger(x), the gate starting at 0 (V2+: shortcut_gate * x + gate * burger(x)).

    Breads and cheese are spectrally normalised pointwise maps without bias, always in equality mode (as in the official
    HamGAN, whose other layers use inequality).

    Args:
        channels: Channels C of the map.
        resolution: Height and width of the map, pixels; fixes the columns' length in the channel layout.
        config: Everything else.
        spectral_norm: Of breads and cheese; its mode is replaced by equality unless it is none.
        norm: Builds the conditional norm from a number of channels; None: no norm (the discriminator's).

    Source: Geng et al. 2021, section 3.1 and appendix; section 4.3 for the GAN.
    """

    def __init__(
        self,
        channels: int,
        resolution: int,
        config: HamburgerConfig,
        *,
        spectral_norm: SpectralNormConfig,
        norm: ConditionalNormFactory | None,
    ) -> None:
        super().__init__()
        if spectral_norm.mode == "inequality":
            spectral_norm = SpectralNormConfig(mode="equality", side=spectral_norm.side, eps=spectral_norm.eps)
        latent = config.num_sections * (config.latent_channels or channels)
        num_hams = 2 if config.layout == "dual" else 1
        self.num_sections = config.num_sections
        self.non_negative = config.kind == "NMF"
        self.lower_bread = SNConv2d(channels, num_hams * latent, 1, bias=False, spectral_norm=spectral_norm)
        section = latent // config.num_sections
        self.spatial_ham = build_decomposition(config, section) if config.layout != "channel" else None
        self.channel_ham = build_decomposition(config, resolution**2) if config.layout != "spatial" else None
        self.cheese = self.cheese_norm = self.upper_bread_norm = None
        if config.version == "V1":
            self.upper_bread = SNConv2d(latent, channels, 1, bias=False, spectral_norm=spectral_norm)
            self.upper_bread_norm = norm(channels) if norm else None
        else:
            self.cheese = SNConv2d(num_hams * latent, channels, 1, bias=False, spectral_norm=spectral_norm)
            self.cheese_norm = norm(channels) if norm else None
            self.upper_bread = SNConv2d(channels, channels, 1, bias=False, spectral_norm=spectral_norm)
        self.gate = nn.Parameter(torch.zeros(()))
        self.shortcut_gate = nn.Parameter(torch.ones(())) if config.version == "V2+" else None

    def forward(self, x: Tensor, c: Tensor | None = None, bases: Tensor | None = None) -> Tensor:
        """Add global context to a map.

        Args:
            x: Features, (B, C, H, W).
            c: The blocks' condition; needed where there is a norm.
            bases: Initial bases of the ham, (B * S, D, R) or (1, D, R); or int64 keys (B,) that fresh bases follow; None for
                the ham's own.

        Returns:
            (B, C, H, W).
        """
        shortcut = x if self.shortcut_gate is None else self.shortcut_gate * x
        if self.upper_bread_norm is not None:
            return gated_sum(shortcut, self.gate, self.burger(x, c, bases))
        return shortcut + self.upper_bread.scaled(self._filling(x, c, bases), self.gate)

    def burger(self, x: Tensor, c: Tensor | None, bases: Tensor | None = None) -> Tensor:
        """Return the context (B, C, H, W) before gate and shortcut; arguments as in `forward`."""
        h = self.upper_bread(self._filling(x, c, bases))
        return h if self.upper_bread_norm is None else self.upper_bread_norm(h, c)

    def _filling(self, x: Tensor, c: Tensor | None, bases: Tensor | None) -> Tensor:
        """Return what the upper bread lies on: ham and cheese."""
        h = self.reconstruct(self.columns_of(x), bases)
        if self.cheese is not None:
            h = self.cheese(h)
            h = F.relu(h) if self.cheese_norm is None else self.cheese_norm(h, c, relu=True)
        return h

    def columns_of(self, x: Tensor) -> Tensor:
        """Return the map that is decomposed: the lower bread's output, (B, latent, H, W), non-negative for NMF."""
        h = self.lower_bread(x)
        return F.relu_(h) if self.non_negative else h

    def reconstruct(self, h: Tensor, bases: Tensor | None = None) -> Tensor:
        """Pass a map (B, latent, H, W) through the ham or hams; same shape."""
        if self.spatial_ham is None:
            assert self.channel_ham is not None
            return self._channel(self.channel_ham, h, bases)
        if self.channel_ham is None:
            return self._spatial(self.spatial_ham, h, bases)
        if bases is not None and bases.dim() != 1:
            raise ValueError("bases were given to a dual layout, whose two hams have columns of different length")
        first, second = h.chunk(2, dim=1)
        return torch.cat(
            [self._spatial(self.spatial_ham, first, bases), self._channel(self.channel_ham, second, bases)], 1
        )

    def _spatial(self, ham: MatrixDecomposition, h: Tensor, bases: Tensor | None) -> Tensor:
        """(B, S*D, H, W) -> (B*S, D, N) -> ham -> back."""
        columns = h.flatten(2)
        if self.num_sections > 1:
            columns = columns.unflatten(1, (self.num_sections, -1)).flatten(0, 1)
        return ham(columns, bases).reshape(h.shape)

    def _channel(self, ham: MatrixDecomposition, h: Tensor, bases: Tensor | None) -> Tensor:
        """(B, S*N, H, W) -> (B*S, D = H*W, N) -> ham -> back."""
        columns = h.flatten(2)
        if self.num_sections > 1:
            columns = columns.unflatten(1, (self.num_sections, -1)).flatten(0, 1)
        return ham(columns.transpose(1, 2), bases).transpose(1, 2).reshape(h.shape)

    def store_bases(self, bases: Tensor) -> None:
        """Replace the bases that evaluation starts from.

        Args:
            bases: (S, D, R), or (B * S, D, R) to serve only batches of B samples.

        Raises:
            ValueError: If the layout is dual or D is not the ham's.
        """
        ham = self.spatial_ham or self.channel_ham
        if ham is None or (self.spatial_ham is not None and self.channel_ham is not None):
            raise ValueError("bases were given to a dual layout, whose two hams have columns of different length")
        if bases.dim() != 3 or bases.shape[1] != ham.dim:
            raise ValueError(f"bases have shape {tuple(bases.shape)}; this ham needs (S, {ham.dim}, R)")
        ham.bases = bases.detach().clone().float()
        ham.rank = bases.shape[2]

    @torch.no_grad()
    def reconstruction_error(self, x: Tensor) -> Tensor:
        """Return |X - bases coef^T| / |X| of one map (B, C, H, W), a scalar, for monitoring."""
        h = self.columns_of(x)
        return (h - self.reconstruct(h)).float().norm() / h.float().norm().clamp_min(1e-12)

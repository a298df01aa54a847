"""The Hamburger of the segmentation heads: ReLU(x + upper bread(ham(lower bread(x)))).

The GAN's (`hamgan.nn.hamburger`) shares the ham alone: its breads are spectrally normalised and a gate weighs the whole.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamgan.nn.hamburger import HamburgerConfig, build_decomposition
from hamgan.segmentation.layers import ConvNormReLU, NormFactory

HamVersion = Literal["V1", "V2", "V2+"]


class Hamburger(nn.Module):
    """A context block in three versions.

    V1: norm after the upper bread. V2: a cheese (1x1, norm, ReLU) before it, no norm after. V2+: V2 with a learnt scalar on
    the context, from 0, and one on the shortcut, from 1.

    Args:
        channels: Channels C of the map.
        ham: The decomposition; `latent_channels` is its D, 0 for C. Its version, layout and sections are not used.
        version: V1 (the ADE20K heads, and the paper's smaller one), V2 or V2+.
        norm: Builds the norm.

    Source: Geng et al. 2021, section 3.1 and appendix.
    """

    def __init__(self, channels: int, ham: HamburgerConfig, *, version: HamVersion, norm: NormFactory) -> None:
        super().__init__()
        latent = ham.latent_channels or channels
        self.non_negative = ham.kind == "NMF"
        self.lower_bread = nn.Conv2d(channels, latent, 1)
        self.ham = build_decomposition(ham, latent)
        self.cheese = None if version == "V1" else ConvNormReLU(latent, latent, 1, norm=norm)
        self.upper_bread = nn.Conv2d(latent, channels, 1, bias=False)
        self.upper_bread_norm = norm(channels) if version == "V1" else None
        self.gate = nn.Parameter(torch.zeros(())) if version == "V2+" else None
        self.shortcut_gate = nn.Parameter(torch.ones(())) if version == "V2+" else None

    def forward(self, x: Tensor, bases: Tensor | None = None) -> Tensor:
        """Add global context to a map.

        Args:
            x: Features, (B, C, H, W).
            bases: Initial bases of the ham, (B, D, R) or (1, D, R); None for the ham's own.

        Returns:
            (B, C, H, W), non-negative.
        """
        h = self.lower_bread(x)
        if self.non_negative:
            h = F.relu(h)
        h = self.ham(h.flatten(2), bases).reshape(h.shape)
        if self.cheese is not None:
            h = self.cheese(h)
        h = self.upper_bread(h)
        if self.upper_bread_norm is not None:
            h = self.upper_bread_norm(h)
        if self.gate is not None and self.shortcut_gate is not None:
            return F.relu(self.shortcut_gate * x + self.gate * h)
        return F.relu(x + h)

    def store_bases(self, bases: Tensor) -> None:
        """Replace the bases that evaluation starts from.

        Args:
            bases: (1, D, R), or (B, D, R) to serve only batches of B samples.

        Raises:
            ValueError: If D is not the ham's.
        """
        if bases.dim() != 3 or bases.shape[1] != self.ham.dim:
            raise ValueError(f"bases have shape {tuple(bases.shape)}; this ham needs (1, {self.ham.dim}, R)")
        self.ham.bases = bases.detach().clone().float()
        self.ham.rank = bases.shape[2]

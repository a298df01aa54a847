"""Directions of the latent space, in closed form: those that a layer's weights answer to most.

Source: Shen & Zhou 2021, "Closed-Form Factorization of Latent Semantics in GANs" (SeFa), equations 5 to 7.
"""

from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from hamgan.nn.norm import ConditionalBatchNorm
from hamgan.nn.spectral_norm import SNLinear
from hamgan.sampling.draw import DrawsImages


class ReadsLatents(Protocol):
    """The parts of a generator that z goes into."""

    linear: SNLinear
    blocks: nn.ModuleList
    contexts: nn.ModuleList
    num_chunks: int

    @property
    def config(self) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Directions:
    """The principal directions of one layer."""

    layer: int
    """0: the first linear map; i: the conditional norms of block i, which a hierarchical z feeds."""
    name: str
    """That in words."""
    vectors: Tensor
    """Unit directions in z, (n, z_dim), float32; the largest component of each is positive."""
    gains: Tensor
    """How far the layer's output moves for a unit step, (n,), falling."""


def chosen_directions(G: DrawsImages, layers: str) -> list[Directions]:
    """Factorise the layers that a user names: a number, or `all` that read a part of z.

    Raises:
        ValueError: If it is neither, or z does not reach that layer.
    """
    network = cast(ReadsLatents, G)
    if layers == "all":
        return [layer_directions(network, layer) for layer in range(network.num_chunks)]
    if not layers.isdecimal():
        raise ValueError(f"--layer is '{layers}'; allowed are 0, 1, 2, ... and all")
    return [layer_directions(network, int(layers))]


@torch.no_grad()
def layer_directions(G: ReadsLatents, layer: int = 0) -> Directions:
    """Factorise a layer: the right singular vectors of the weight that z meets there.

    Args:
        G: In evaluation mode.
        layer: 0 for the first linear map; up to the number of blocks where z is hierarchical.

    Returns:
        As many directions as the layer's part of z has components. All other components of z stay as they are.

    Raises:
        ValueError: If z does not reach that layer.
    """
    if not 0 <= layer < G.num_chunks:
        why = "" if G.num_chunks > 1 else "; z goes into the first layer only (generator.hierarchical is false)"
        raise ValueError(f"--layer is {layer}; allowed are 0 to {G.num_chunks - 1}{why}")
    chunk = G.config.z_dim // G.num_chunks
    if layer == 0:
        weight, name = G.linear.spectral_norm(G.linear.weight), "first linear map"
    else:
        weight, name = _norms_weight(G, layer - 1, chunk), f"block {layer}, {4 * 2**layer}x{4 * 2**layer}"
    # In float64: directions of nearly equal gain would otherwise turn with the last digits.
    _, gains, rows = torch.linalg.svd(weight.double().cpu(), full_matrices=False)
    signs = rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
    vectors = torch.zeros(len(rows), G.config.z_dim)
    vectors[:, layer * chunk : (layer + 1) * chunk] = (rows * signs).float()
    return Directions(layer=layer, name=name, vectors=vectors, gains=gains.float())


def _norms_weight(G: ReadsLatents, block: int, chunk: int) -> Tensor:
    """Stack what the gains and biases of a block's norms do with its chunk of z, (rows, chunk)."""
    weights = []
    for part in (G.blocks[block], G.contexts[block]):
        for norm in part.modules():
            if isinstance(norm, ConditionalBatchNorm):
                for table in (norm.gain, norm.bias):
                    assert isinstance(table, SNLinear)
                    weights.append(table.spectral_norm(table.weight)[:, -chunk:])
    return torch.cat(weights)


def edits(z: Tensor, direction: Tensor, strengths: Tensor) -> Tensor:
    """Move a latent along a direction.

    Args:
        z: (z_dim,).
        direction: Unit, (z_dim,).
        strengths: How far, in deviations of the normal, (E,).

    Returns:
        (E, z_dim).
    """
    return z + strengths[:, None] * direction

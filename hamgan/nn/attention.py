"""Self-attention over pixels: the context block that the Hamburger replaces."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamgan.nn.second_order import differentiable_once
from hamgan.nn.spectral_norm import SNConv2d, SpectralNormConfig
from hamgan.nn.tiles import attend_in_tiles


class SelfAttention(nn.Module):
    """x + gate * o(softmax(theta' phi) g), keys and values max-pooled 2x2; called as `Hamburger` is.

    Args:
        channels: Channels C of the map; queries and keys have max(C // 8, 1), values C // 2.
        spectral_norm: Of the four pointwise maps, which have no bias.

    Source: Zhang et al. 2019 (SAGAN), section 3, as released: no scale before the softmax.
    """

    def __init__(self, channels: int, *, spectral_norm: SpectralNormConfig) -> None:
        super().__init__()
        keys, values = max(channels // 8, 1), max(channels // 2, 1)
        self.theta = SNConv2d(channels, keys, 1, bias=False, spectral_norm=spectral_norm)
        self.phi = SNConv2d(channels, keys, 1, bias=False, spectral_norm=spectral_norm)
        self.g = SNConv2d(channels, values, 1, bias=False, spectral_norm=spectral_norm)
        self.o = SNConv2d(values, channels, 1, bias=False, spectral_norm=spectral_norm)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, c: Tensor | None = None, bases: Tensor | None = None) -> Tensor:
        """Add global context to (B, C, H, W), H and W even.

        Args:
            x: Features.
            c: The blocks' condition; attention does not depend on it.
            bases: A Hamburger's initial dictionary; attention has none.
        """
        queries = self.theta(x).flatten(2).transpose(1, 2)
        keys = F.max_pool2d(self.phi(x), 2).flatten(2).transpose(1, 2)
        values = F.max_pool2d(self.g(x), 2).flatten(2).transpose(1, 2)
        context = differentiable_once(attend, attend_plainly, queries, keys, values)
        return x + self.o.scaled(context.transpose(1, 2).unflatten(2, x.shape[2:]), self.gate)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return softmax(queries keys^T) values without ever holding the (N, M) weights, by the faster of two ways.

    In bfloat16 on a CPU that is `attend_in_tiles`, elsewhere torch's fused kernel. Its heads are of one size: queries and keys
    are filled up with zeros, which changes no product.

    Args:
        queries: (B, N, E).
        keys: (B, M, E).
        values: (B, M, V) with V >= E.

    Returns:
        (B, N, V).
    """
    if queries.device.type == "cpu" and queries.dtype == torch.bfloat16:
        return attend_in_tiles(queries, keys, values)
    missing = values.shape[2] - queries.shape[2]
    queries, keys = F.pad(queries, (0, missing)), F.pad(keys, (0, missing))
    return F.scaled_dot_product_attention(queries[:, None], keys[:, None], values[:, None], scale=1.0)[:, 0]


def attend_plainly(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return what `attend` does, by products that can be differentiated again."""
    return torch.bmm(torch.bmm(queries, keys.transpose(1, 2)).softmax(-1), values)

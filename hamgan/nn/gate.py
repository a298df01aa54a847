"""The gated sum with which a context block joins its shortcut."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def gated_sum(shortcut: Tensor, gate: Tensor, h: Tensor) -> Tensor:
    """Return shortcut + gate * h, without a map in between in either pass.

    Args:
        shortcut: (B, C, H, W).
        gate: A scalar, rounded to h's dtype, as torch rounds it in a product.
        h: (B, C, H, W).

    Returns:
        (B, C, H, W), in the wider of both maps' dtypes.

    Source: Zhang et al. 2019 (SAGAN), equation 3; Geng et al. 2021, section 4.3.
    """
    dtype = torch.promote_types(shortcut.dtype, h.dtype)
    return cast(Tensor, _GatedSum.apply(shortcut.to(dtype), gate, h.to(dtype)))


class _GatedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, shortcut: Tensor, gate: Tensor, h: Tensor) -> Tensor:
        ctx.save_for_backward(gate, h)
        return torch.addcmul(shortcut, gate.to(h.dtype), h)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate, h = ctx.saved_tensors
        return gradient, _inner_product(gradient, h).to(gate.dtype), gradient * gate.to(h.dtype)


def _inner_product(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of a * b; in float32 and above without the product's map, where both lie alike."""
    if a.dtype in (torch.float32, torch.float64):
        if a.is_contiguous() and b.is_contiguous():
            return torch.dot(a.view(-1), b.view(-1))
        if all(map_.is_contiguous(memory_format=torch.channels_last) for map_ in (a, b)):
            return torch.dot(a.permute(0, 2, 3, 1).view(-1), b.permute(0, 2, 3, 1).view(-1))
    return (a * b).sum(dtype=torch.promote_types(a.dtype, torch.float32))

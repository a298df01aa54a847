"""Nearest upsampling before a 3x3 convolution and average pooling after one, each as a 3x3 convolution of stride 2.

Both are exact rewrites with four times fewer multiplications. Upsampling by 2 is filling in zeros and then summing every 2x2
pixels, which commutes with a convolution: the sums can be taken of its result, and zeros need no products, which makes it a
transposed convolution of stride 2. Pooling sums the result over 2x2 pixels, which commutes likewise: the sums can be taken of
its input, and only every second pixel of every second row is needed, a convolution of stride 2. The sums are additions.

Of the presets' sizes none is clearly slower so: `benchmarks/resample.py` measures both ways.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hamgan.nn import kernel_library, kernels
from hamgan.nn.convolution import conv2d


def upsample_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Upsample by 2 (nearest), then convolve with same padding.

    Args:
        x: Features, (B, c_in, H, W).
        weight: Kernel, (c_out, c_in, k, k) with k 1 or 3.
        bias: (c_out,) or None.

    Returns:
        (B, c_out, 2H, 2W).
    """
    if weight.shape[-1] == 1:  # a pointwise map commutes with upsampling: four times fewer products
        return upsample(conv2d(x, weight, bias))
    return sum_windows(conv2d(x, weight, None, spread=True), 1.0, padded=False, after=bias)


def conv2d_downsample(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, before: Tensor | None = None, relu: bool = False
) -> Tensor:
    """Convolve with same padding, then average over 2x2 pixels.

    Args:
        x: Features, (B, c_in, H, W), H and W even.
        weight: Kernel, (c_out, c_in, k, k) with k 1 or 3.
        bias: (c_out,) or None.
        before: (c_in,), added to x first; or None.
        relu: Whether the positive part is taken then.

    Returns:
        (B, c_out, H/2, W/2).
    """
    if weight.shape[-1] == 1:  # a pointwise map commutes with averaging
        x = x if before is None else x + before.to(x.dtype).view(-1, 1, 1)
        return conv2d(downsample(F.relu(x) if relu else x), weight, bias)
    return conv2d(sum_windows(x, 0.25, padded=True, before=before, relu=relu), weight, bias, stride=2)


def upsample(x: Tensor) -> Tensor:
    """Repeat every pixel of (B, C, H, W) twice along both sides."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def add_upsampled(h: Tensor, low: Tensor) -> Tensor:
    """Return h + upsample(low), written over h: (B, C, 2H, 2W) and (B, C, H, W), of one dtype."""
    alike = h.dtype == low.dtype and h.shape == (*low.shape[:2], 2 * low.shape[2], 2 * low.shape[3])
    if alike and kernels.takes_pooling(h) and kernel_library.takes_pixels(low):
        return cast(Tensor, _AddUpsampled.apply(h, low))
    return h.add_(upsample(low))


class _AddUpsampled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, low: Tensor) -> Tensor:
        ctx.mark_dirty(h)
        return kernels.unpool(low, 1.0, h, in_place=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = gradients
        if torch.is_grad_enabled() or not kernels.takes_pooling(grad):
            return grad, 4 * F.avg_pool2d(grad, 2)
        return grad, kernels.pool(grad, 1.0)[0]


def downsample(x: Tensor) -> Tensor:
    """Average every 2x2 pixels of (B, C, H, W)."""
    if kernels.takes_pooling(x):
        return cast(Tensor, _Downsample.apply(x, False)[0])
    return F.avg_pool2d(x, 2)


def relu_and_downsample(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positive part of (B, C, H, W) and the average of every 2x2 of its pixels, from one pass over it."""
    if kernels.takes_pooling(x):
        pooled, positive = _Downsample.apply(x, True)
        return positive, pooled
    return F.relu(x), F.avg_pool2d(x, 2)


class _Downsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, relu: bool) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(x if relu else None)
        return kernels.pool(x, 0.25, relu=relu)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        grad, grad_positive = gradients
        assert grad is not None
        (x,) = ctx.saved_tensors
        maps = [grad] if grad_positive is None else [grad, grad_positive]
        if torch.is_grad_enabled() or not all(kernel_library.takes_pixels(one) for one in maps):
            found = upsample(grad) / 4
            if grad_positive is not None:
                found = found + torch.ops.aten.threshold_backward(grad_positive, x, 0)
            return found, None
        return kernels.unpool(grad, 0.25, grad_positive, x), None


def sum_windows(
    x: Tensor,
    by: float,
    *,
    padded: bool,
    before: Tensor | None = None,
    relu: bool = False,
    after: Tensor | None = None,
) -> Tensor:
    """Sum over every 2x2 neighbouring pixels, at every offset: by * sums(x) + after, of relu(x + before) where `relu`.

    Args:
        x: Features, (B, C, H, W).
        by: What the sums are multiplied by.
        padded: Whether zeros surround the map: (B, C, H + 1, W + 1), otherwise (B, C, H - 1, W - 1).
        before: (C,) or None.
        relu: Whether the positive part is taken.
        after: (C,) or None.
    """
    in_one_pass = after is None if relu else before is None
    fit = all(shift is None or shift.shape == x.shape[1:2] for shift in (before, after))
    if not in_one_pass or not fit or not kernels.takes_map(x):
        return _sum_windows(x, by, padded, before, relu, after)
    return cast(Tensor, _SumWindows.apply(x, by, padded, before, relu, after))


def _sum_windows(x: Tensor, by: float, padded: bool, before: Tensor | None, relu: bool, after: Tensor | None) -> Tensor:
    if before is not None:
        x = x + before.to(x.dtype).view(-1, 1, 1)
    if relu:
        x = F.relu(x)
    sums = F.avg_pool2d(x, 2, stride=1, padding=int(padded), divisor_override=1)
    sums = sums if by == 1 else sums * by
    return sums if after is None else sums + after.to(x.dtype).view(-1, 1, 1)


class _SumWindows(torch.autograd.Function):
    """With `padded` and without it are each other's adjoint."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, by: float, padded: bool, before: Tensor | None, relu: bool, after: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x if relu else None, before)
        ctx.by, ctx.padded = by, padded
        ctx.dtypes = [None if shift is None else shift.dtype for shift in (before, after)]
        return kernels.windows(x, by, padded=padded, before=before, relu=relu, after=after)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        x, before = ctx.saved_tensors
        if torch.is_grad_enabled() or not kernels.takes_map(grad):
            found = _sum_windows(grad, ctx.by, not ctx.padded, None, False, None)
            if x is not None:
                found = found.masked_fill((x if before is None else x + before.view(-1, 1, 1)) <= 0, 0)
            total = (grad if x is None else found).sum((0, 2, 3))
        else:
            found, total = kernels.windows_gradient(grad, ctx.by, padded=ctx.padded, before=before, value=x)
        of_before, of_after = (
            total.to(dtype) if dtype is not None and needed else None
            for dtype, needed in zip(ctx.dtypes, (ctx.needs_input_grad[3], ctx.needs_input_grad[5]), strict=True)
        )
        return found, None, None, of_before, None, of_after

"""Nearest upsampling before a 3x3 convolution and average pooling after one, each as a single convolution.

Both are exact rewrites. Upsampling by 2 then convolving reads each low-resolution pixel through several taps: summing those
taps once gives a transposed 4x4 convolution of stride 2 with 2.25 times fewer multiplications. Pooling after a convolution
averages four shifted copies of the kernel: one 4x4 convolution of stride 2.

The rule for when not to: measured on CPUs with AVX-512 (`benchmarks/resample.py`), maps of up to `SMALL_MAP` pixels a side at
the low resolution gain nothing or lose, because the 4x4 kernels are larger to reorder than the maps are to convolve.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hamgan.nn import kernels
from hamgan.nn.convolution import conv2d

SMALL_MAP = 4


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
    if min(x.shape[2:]) <= SMALL_MAP:
        return conv2d(upsample(x), weight, bias, padding=1)
    return conv2d(x, _transposed_kernel(weight), bias, stride=2, padding=1, transposed=True)


def conv2d_downsample(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve with same padding, then average over 2x2 pixels.

    Args:
        x: Features, (B, c_in, H, W), H and W even.
        weight: Kernel, (c_out, c_in, k, k) with k 1 or 3.
        bias: (c_out,) or None.

    Returns:
        (B, c_out, H/2, W/2).
    """
    if weight.shape[-1] == 1:  # a pointwise map commutes with averaging
        return conv2d(downsample(x), weight, bias)
    if min(x.shape[2:]) <= 2 * SMALL_MAP:
        return downsample(conv2d(x, weight, bias, padding=1))
    return conv2d(x, _sum_neighbouring_taps(weight, scale=0.25), bias, stride=2, padding=1)


def upsample(x: Tensor) -> Tensor:
    """Repeat every pixel of (B, C, H, W) twice along both sides."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def add_upsampled(h: Tensor, low: Tensor) -> Tensor:
    """Return h + upsample(low), written over h: (B, C, 2H, 2W) and (B, C, H, W), of one dtype."""
    alike = h.dtype == low.dtype and h.shape == (*low.shape[:2], 2 * low.shape[2], 2 * low.shape[3])
    if alike and kernels.takes_pooling(h) and kernels.takes_pixels(low):
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
        if torch.is_grad_enabled() or not all(kernels.takes_pixels(one) for one in maps):
            found = upsample(grad) / 4
            if grad_positive is not None:
                found = found + torch.ops.aten.threshold_backward(grad_positive, x, 0)
            return found, None
        return kernels.unpool(grad, 0.25, grad_positive, x), None


def _sum_neighbouring_taps(weight: Tensor, *, flipped: bool = False, scale: float = 1.0) -> Tensor:
    """Sum the kernel shifted by 0 and 1 along both sides: (c_out, c_in, 3, 3) -> (c_out, c_in, 4, 4), times `scale`.

    `flipped` turns the result by 180 degrees. On a CPU this is one product with a matrix of zeros and ones, over the taps as
    they lie in memory; elsewhere, and compiled, sums of padded copies.
    """
    if weight.device.type != "cpu" or torch.compiler.is_compiling():
        weight = weight * scale
        return _sum_shifted(weight.flip(2, 3) if flipped else weight)
    taps = (FLIPPED_TAPS if flipped else TAPS).to(weight.dtype) * scale
    if weight.is_contiguous(memory_format=torch.channels_last):
        summed = torch.matmul(taps, weight.permute(0, 2, 3, 1).flatten(1, 2))
        return summed.unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    return torch.matmul(weight.flatten(2), taps.t()).unflatten(2, (4, 4))


def _transposed_kernel(weight: Tensor) -> Tensor:
    """Return the kernel of the transposed convolution that upsamples and convolves, (c_in, c_out, 4, 4)."""
    plain = weight.device.type != "cpu" or torch.compiler.is_compiling()
    if plain or not weight.is_contiguous(memory_format=torch.channels_last):
        return _sum_neighbouring_taps(weight, flipped=True).transpose(0, 1)
    return cast(Tensor, _TransposedKernel.apply(weight))


class _TransposedKernel(torch.autograd.Function):
    """Channels_last to channels_last: one exchange of rows and columns of a matrix, which is fast, in place of one of axes.

    Linear, and so is its adjoint, each the other's derivative.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        c_out, c_in = weight.shape[:2]
        taps = weight.permute(0, 2, 3, 1).flatten(1).t().contiguous().view(9, c_in, c_out)
        kernel = torch.matmul(FLIPPED_TAPS.to(weight.dtype), taps.transpose(0, 1))
        return kernel.unflatten(1, (4, 4)).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return cast(Tensor, _TransposedKernelAdjoint.apply(gradients[0]))


class _TransposedKernelAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Tensor) -> Tensor:
        c_in, c_out = kernel.shape[:2]
        taps = kernel.permute(2, 3, 0, 1).reshape(16, c_in * c_out)
        weight = torch.mm(FLIPPED_TAPS.to(kernel.dtype).t(), taps).view(9 * c_in, c_out).t().contiguous()
        return weight.view(c_out, 3, 3, c_in).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return cast(Tensor, _TransposedKernel.apply(gradients[0].contiguous(memory_format=torch.channels_last)))


def _sum_shifted(weight: Tensor) -> Tensor:
    columns = F.pad(weight, (0, 1)) + F.pad(weight, (1, 0))
    return F.pad(columns, (0, 0, 0, 1)) + F.pad(columns, (0, 0, 1, 0))


TAPS = _sum_shifted(torch.eye(9).view(9, 3, 3)).flatten(1).t().contiguous()
"""(16, 9): entry (i, j) is 1 where tap j of the 3x3 kernel goes into tap i of the 4x4 one."""
FLIPPED_TAPS = TAPS.flip(0)
"""The same for the 4x4 kernel turned by 180 degrees."""

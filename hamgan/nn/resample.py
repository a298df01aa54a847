"""Nearest upsampling before a 3x3 convolution and average pooling after one, each as a single convolution.

Both are exact rewrites. Upsampling by 2 then convolving reads each low-resolution pixel through several taps: summing those
taps once gives a transposed 4x4 convolution of stride 2 with 2.25 times fewer multiplications. Pooling after a convolution
averages four shifted copies of the kernel: one 4x4 convolution of stride 2.

The rule for when not to: measured on CPUs with AVX-512 (`benchmarks/resample.py`), maps of up to `SMALL_MAP` pixels a side at
the low resolution gain nothing or lose, because the 4x4 kernels are larger to reorder than the maps are to convolve.
"""

import torch.nn.functional as F
from torch import Tensor

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
        return upsample(F.conv2d(x, weight, bias))
    if min(x.shape[2:]) <= SMALL_MAP:
        return F.conv2d(upsample(x), weight, bias, padding=1)
    kernel = _sum_neighbouring_taps(weight).flip(2, 3).transpose(0, 1)
    return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)


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
        return F.conv2d(downsample(x), weight, bias)
    if min(x.shape[2:]) <= 2 * SMALL_MAP:
        return downsample(F.conv2d(x, weight, bias, padding=1))
    return F.conv2d(x, _sum_neighbouring_taps(weight) / 4, bias, stride=2, padding=1)


def upsample(x: Tensor) -> Tensor:
    """Repeat every pixel of (B, C, H, W) twice along both sides."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def downsample(x: Tensor) -> Tensor:
    """Average every 2x2 pixels of (B, C, H, W)."""
    return F.avg_pool2d(x, 2)


def _sum_neighbouring_taps(weight: Tensor) -> Tensor:
    """Sum the kernel shifted by 0 and 1 along both sides: (c_out, c_in, 3, 3) -> (c_out, c_in, 4, 4)."""
    columns = F.pad(weight, (0, 1)) + F.pad(weight, (1, 0))
    return F.pad(columns, (0, 0, 0, 1)) + F.pad(columns, (0, 0, 1, 0))

"""Batch statistics over the processes of a run, as one differentiable operation.

Each process sends its channels' means and variances once forward and two sums a channel once backward; the map itself is read
by the same fused kernels that a lone process uses: torch's here, the compiled ones in norm.py.
"""

from typing import Any

import torch
import torch.distributed as torch_dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hamgan.nn.exchange import gather


def standardize(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, int]:
    """Standardise each channel by the statistics of the batch over all processes, which hold equally many samples.

    Args:
        x: (B, C, H, W), float32 or bfloat16.
        eps: Added to the variance.

    Returns:
        The standardised map in x's dtype; mean and biased variance, float32 (C,), without gradient; and the number of values
        a channel that they are of.
    """
    y, mean, var = _Standardize.apply(x, eps)
    return y, mean, var, x.numel() // x.shape[1] * torch_dist.get_world_size()


def join_moments(moments: Tensor) -> Tensor:
    """Return mean and biased variance over all processes from each one's, (2, C), of equally many values.

    Source: Chan et al. 1979, without cancellation.
    """
    means, variances = torch.stack(gather(moments), 1)
    mean = means.mean(0)
    return torch.stack([mean, variances.mean(0) + (means - mean).square().mean(0)])


class _Standardize(torch.autograd.Function):
    """Source: Ioffe & Szegedy 2015 for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean, var = join_moments(torch.stack(_local_statistics(x)))
        ctx.save_for_backward(x, mean, var)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, training=False, eps=eps), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        x, mean, var = ctx.saved_tensors
        scale = torch.rsqrt(var + ctx.eps)
        # The fused kernel, told the statistics of all processes, subtracts the means of its own gradients only:
        # dx = scale * (grad - mean_1 - y * mean_y). What these differ by from the means over all processes is put right after.
        dx, sum_y, sum_1 = torch.ops.aten.native_batch_norm_backward(
            grad, x, torch.ones_like(mean), None, None, mean, scale, True, ctx.eps, [True, True, True]
        )
        sums = torch.stack([sum_1, sum_y])  # in the order of kernels.norm_gradient_sums: another process may use those
        parts = gather(sums)
        off_1, off_y = (sums - torch.stack(parts).mean(0)) * (scale * x.shape[1] / x.numel())
        return dx.add_(F.batch_norm(x, mean, var, off_y, off_1, training=False, eps=ctx.eps)), None


def _local_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return this process's mean and biased variance of each channel, float32 (C,)."""
    if x.device.type == "cpu":
        running = torch.zeros(
            2, x.shape[1], device=x.device
        )  # given in float32, so that bfloat16 maps have float32 statistics
        return torch.batch_norm_update_stats(x, running[0], running[1], 0.0)
    mean, inverse = torch.batch_norm_stats(x, 0.0)
    return mean, inverse.square().reciprocal()

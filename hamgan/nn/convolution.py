"""A convolution whose backward pass takes the gradients of bias and ReLU apart from those of the products."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hamgan.nn import kernels
from hamgan.nn.precision import compute_dtype


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int = 1,
    padding: int = 0,
    transposed: bool = False,
    relu: bool = False,
) -> Tensor:
    """Convolve as torch does, but take the bias's gradient as a sum of its own, together with that of a ReLU.

    oneDNN joins it to the weight's gradient, which is slower than the two apart, most of all for transposed convolutions in
    bfloat16.

    Args:
        x: Features, (B, c_in, H, W); cast to autocast's dtype where autocast is on.
        weight: Kernel, (c_out, c_in, k, k), transposed: (c_in, c_out, k, k); cast likewise.
        bias: (c_out,) or None.
        stride: In pixels.
        padding: In pixels, on all sides.
        transposed: Whether this is a transposed convolution.
        relu: Whether the positive part is taken then.
    """
    dtype = compute_dtype(x)
    x, weight = x.to(dtype), weight.to(dtype)
    if torch.compiler.is_compiling():
        out = _convolution(x, weight, bias, stride, padding, transposed)
        return F.relu(out) if relu else out
    return cast(Tensor, _Conv2d.apply(x, weight, bias, stride, padding, transposed, relu))


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, transposed: bool) -> Tensor:
    bias = None if bias is None else bias.to(x.dtype)
    return torch.convolution(x, weight, bias, [stride] * 2, [padding] * 2, [1, 1], transposed, [0, 0], 1)


class _Conv2d(torch.autograd.Function):
    """Differentiable any number of times: its backward pass is made of differentiable operations."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        padding: int,
        transposed: bool,
        relu: bool,
    ) -> Tensor:
        ctx.compiled = kernels.takes_convolution(x, weight, stride, padding, transposed)
        if ctx.compiled:
            out = kernels.convolve(x, weight, bias, stride=stride, padding=padding, transposed=transposed, relu=relu)
        else:
            out = _convolution(x, weight, bias, stride, padding, transposed)
            if relu:
                out.relu_()
        ctx.save_for_backward(x, weight, out if relu else None)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.geometry = [stride] * 2, [padding] * 2, [1, 1], transposed, [0, 0], 1
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        x, weight, out = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = grad_bias = None
        takes = kernels.takes_map(grad) and (out is None or kernels.takes_map(out))
        if takes and (needs_bias or out is not None) and not torch.is_grad_enabled():
            grad, grad_bias = kernels.channel_sums(grad, out)
        else:
            grad = grad if out is None else torch.ops.aten.threshold_backward(grad, out, 0)
            # Summed in float32 and rounded once; asked for a float32 result, sum would first copy the whole map.
            grad_bias = grad.sum((0, 2, 3)) if needs_bias else None
        if ctx.compiled and not torch.is_grad_enabled() and kernels.takes_pixels(grad):
            (stride, _), (padding, _), _, transposed = ctx.geometry[:4]
            grad_x, grad_weight = kernels.convolve_gradient(
                grad, x, weight, (needs_x, needs_weight), stride=stride, padding=padding, transposed=transposed
            )
        elif needs_x or needs_weight:
            grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
                grad, x, weight, None, *ctx.geometry, [needs_x, needs_weight, False]
            )
        grad_bias = grad_bias.to(ctx.bias_dtype) if needs_bias and grad_bias is not None else None
        return grad_x, grad_weight, grad_bias, None, None, None, None

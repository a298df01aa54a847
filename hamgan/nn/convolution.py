"""Convolutions, by torch or by kernels of our own, with the gradients of bias and ReLU apart from those of the products."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hamgan.nn import convolution_kernels, kernel_library, kernels
from hamgan.nn.precision import compute_dtype


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int = 1,
    padding: int = 0,
    spread: bool = False,
    relu: bool = False,
) -> Tensor:
    """Convolve as torch does, or with kernels of our own, but take the gradients of bias and ReLU as sums of their own.

    oneDNN joins the bias's to the weight's gradient, which is slower than the two apart, most of all in bfloat16.

    Args:
        x: Features, (B, c_in, H, W); cast to autocast's dtype where autocast is on.
        weight: Kernel, (c_out, c_in, k, k); cast likewise.
        bias: (c_out,) or None.
        stride: In pixels.
        padding: In pixels, on all sides.
        spread: Whether zeros are put between the pixels of x first, and k - 1 of them around it; without stride and padding.
            Nothing is multiplied by them: this is a transposed convolution of stride 2.
        relu: Whether the positive part is taken then.

    Returns:
        (B, c_out, H', W'); spread: H' = 2 H + k - 2.
    """
    dtype = compute_dtype(x)
    x, weight = x.to(dtype), weight.to(dtype)
    if torch.compiler.is_compiling():
        out = _convolution(x, weight, bias, stride, padding, spread)
        return F.relu(out) if relu else out
    return cast(Tensor, _Conv2d.apply(x, weight, bias, stride, padding, spread, relu))


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, spread: bool) -> Tensor:
    """As `conv2d`, by torch alone."""
    bias = None if bias is None else bias.to(x.dtype)
    weight = turn(weight) if spread else weight
    return torch.convolution(x, weight, bias, [2 if spread else stride] * 2, [padding] * 2, [1, 1], spread, [0, 0], 1)


def _convolution_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, bool], *, stride: int, padding: int, spread: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x and weight, those of them that are needed, by torch alone."""
    weight = turn(weight) if spread else weight
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        *(grad, x, weight, None, [2 if spread else stride] * 2, [padding] * 2, [1, 1], spread, [0, 0], 1),
        [*needed, False],
    )
    return of_x, turn(of_weight) if spread and needed[1] else of_weight


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
        spread: bool,
        relu: bool,
    ) -> Tensor:
        ctx.compiled = convolution_kernels.takes_convolution(x, weight, bias, stride, padding, spread=spread)
        if ctx.compiled:
            out = convolution_kernels.convolve(
                x, weight, bias, stride=stride, padding=padding, spread=spread, relu=relu
            )
        else:
            out = _convolution(x, weight, bias, stride, padding, spread)
            if relu:
                out.relu_()
        ctx.save_for_backward(x, weight, out if relu else None)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.stride, ctx.padding, ctx.spread = stride, padding, spread
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        x, weight, out = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = grad_bias = None
        twice = torch.is_grad_enabled()  # the engine's way to say create_graph
        takes = kernels.takes_map(grad) and (out is None or kernels.takes_map(out))
        if takes and (needs_bias or out is not None) and not twice:
            grad, grad_bias = kernels.channel_sums(grad, out)
        else:
            grad = grad if out is None else torch.ops.aten.threshold_backward(grad, out, 0)
            # Summed in float32 and rounded once; asked for a float32 result, sum would first copy the whole map.
            grad_bias = grad.sum((0, 2, 3)) if needs_bias else None
        if needs_x or needs_weight:
            compiled = ctx.compiled and not twice and kernel_library.takes_pixels(grad)
            differentiate = convolution_kernels.convolve_gradient if compiled else _convolution_gradient
            grad_x, grad_weight = differentiate(
                grad, x, weight, (needs_x, needs_weight), stride=ctx.stride, padding=ctx.padding, spread=ctx.spread
            )
        grad_bias = grad_bias.to(ctx.bias_dtype) if needs_bias and grad_bias is not None else None
        return grad_x, grad_weight, grad_bias, None, None, None, None


def turn(weight: Tensor) -> Tensor:
    """Turn a kernel (c_out, c_in, k, k) by 180 degrees and exchange its first axes; its own inverse."""
    if kernel_library.takes_pixels(weight):
        return cast(Tensor, _Turn.apply(weight))
    return weight.flip(2, 3).transpose(0, 1)


class _Turn(torch.autograd.Function):
    """Its own inverse and adjoint."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return convolution_kernels.turn(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return turn(gradients[0].contiguous(memory_format=torch.channels_last))

"""Fast forms whose second derivative goes another way.

Fused kernels and hand-written gradients are differentiable once. A gradient penalty (R1) differentiates the gradient: where
that is asked for, and only there, the plain form of the same function is differentiated instead.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

Function = Callable[..., Tensor]


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fast: Function, plain: Function, *inputs: Tensor) -> Tensor:
        ctx.plain = plain
        ctx.save_for_backward(*inputs)
        with torch.enable_grad():
            ctx.leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs]
            ctx.out = fast(*ctx.leaves)
        return cast(Tensor, ctx.out.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        needed = [index for index, tensor in enumerate(ctx.leaves) if tensor.requires_grad]
        if torch.is_grad_enabled():  # the engine's way to say create_graph
            inputs, create_graph = ctx.saved_tensors, True
            out = ctx.plain(*inputs)
        else:
            inputs, out, create_graph = ctx.leaves, ctx.out, False
        # retain_graph: a penalty's step passes here twice, for the penalty and for the loss.
        found = torch.autograd.grad(
            out, [inputs[index] for index in needed], gradients, create_graph=create_graph, retain_graph=True
        )
        by_place = dict(zip(needed, found, strict=True))
        return None, None, *(by_place.get(index) for index in range(len(inputs)))


def differentiable_once(fast: Function, plain: Function, *inputs: Tensor) -> Tensor:
    """Return fast(*inputs), whose first derivative is `fast`'s and whose higher ones are `plain`'s.

    Args:
        fast: A function of the inputs that can be differentiated once.
        plain: The same function, differentiable any number of times.
        inputs: Its arguments, all tensors.
    """
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    if not needs_gradient or torch.compiler.is_compiling():
        return fast(*inputs)
    return cast(Tensor, _Once.apply(fast, plain, *inputs))

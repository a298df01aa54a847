"""Attention in bfloat16 on a CPU as plain products, a tile of the weights at a time.

torch's fused kernel multiplies blocks so small that starting the products is most of its time. Tiles of two million weights are
large enough for products at full speed and small enough for the caches, in buffers that are written over again and again:
fresh memory for every tile would cost more than the arithmetic.

A score is rounded to bfloat16 after the subtraction of about its row's maximum, not before: the larger a weight, the smaller
its error. The subtraction is one more channel of the product. About the maximum is enough, since bfloat16 reaches as far as
float32: that of every eighth key, unless another key stands out so far that its weight would not fit.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

TILE = 2**21
"""Weights (a query and a key each) at a time."""
FEW = 8
"""Every so many-th key is asked for the shift of the scores."""
TOO_LARGE = 1e30
"""From such a sum of weights on, a product with the values might overflow."""


@torch.library.custom_op("hamgan::attend_in_tiles", mutates_args=())
def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return softmax(queries keys^T) values, (B, N, V), and the logarithms of the softmax's sums, float32 (B, N, 1)."""
    out = values.new_empty(*queries.shape[:2], values.shape[2])
    log_sums = torch.empty(*queries.shape[:2], 1)
    keys = torch.cat([keys, torch.ones_like(keys[..., :1])], 2)
    buffers = _buffers(queries, keys, 2)
    for samples, rows in _tiles(queries, keys):
        query, key = queries[samples, rows], keys[samples].transpose(1, 2)
        scores, weights = (_shaped(buffer, query, key) for buffer in buffers)
        for every in (FEW, 1):
            largest = torch.bmm(query, key[:, :-1, ::every]).amax(-1, keepdim=True)
            torch.bmm(torch.cat([query, -largest], 2), key, out=scores)
            torch.exp(scores, out=weights)
            sums = weights.sum(-1, keepdim=True)
            if float(sums.amax()) < TOO_LARGE:
                break
        torch.div(torch.bmm(weights, values[samples]), sums, out=out[samples, rows])
        torch.add(largest, sums.float().log(), out=log_sums[samples, rows])
    return out, log_sums


@torch.library.custom_op("hamgan::attend_in_tiles_backward", mutates_args=())
def _gradients(
    grad: Tensor, out: Tensor, queries: Tensor, keys: Tensor, values: Tensor, log_sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values; the weights are computed again.

    Source: Dao et al. 2022 (FlashAttention), algorithm 4: weights from the sums' logarithms, and the softmax's gradient from
    the inner products of output and gradient. Both are subtracted within the products.
    """
    d_queries = torch.empty_like(queries, memory_format=torch.contiguous_format)
    # Each tile's part is rounded, their sum is not.
    d_keys, d_values = (torch.zeros(x.shape) for x in (keys, values))
    inner = torch.linalg.vecdot(grad.float(), out.float())[..., None]
    queries, grad = (torch.cat([x, *_split(-y)], 2) for x, y in ((queries, log_sums), (grad, inner)))
    keys, values = (torch.cat([x, torch.ones_like(x[..., :2])], 2) for x in (keys, values))
    buffers = _buffers(queries, keys, 3)
    for samples, rows in _tiles(queries, keys):
        query, key, above = queries[samples, rows], keys[samples], grad[samples, rows]
        scores, weights, d_weights = (_shaped(buffer, query, key.transpose(1, 2)) for buffer in buffers)
        torch.bmm(query, key.transpose(1, 2), out=scores)
        torch.exp(scores, out=weights)
        d_values[samples] += torch.bmm(weights.transpose(1, 2), above[..., :-2])
        torch.bmm(above, values[samples].transpose(1, 2), out=d_weights)
        d_scores = torch.mul(d_weights, weights, out=scores)
        d_queries[samples, rows] = torch.bmm(d_scores, key[..., :-2])
        d_keys[samples] += torch.bmm(d_scores.transpose(1, 2), query[..., :-2])
    return d_queries, d_keys.to(keys.dtype), d_values.to(values.dtype)


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return two bfloat16 numbers whose sum is a float32 one but for what is small."""
    high = x.to(torch.bfloat16)
    return high, (x - high).to(torch.bfloat16)


def _tiles(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield samples and queries of each tile."""
    batch, num_queries, num_keys = queries.shape[0], queries.shape[1], keys.shape[1]
    rows = min(max(TILE // num_keys, 1), num_queries)
    samples = max(TILE // (rows * num_keys), 1) if rows == num_queries else 1
    for sample in range(0, batch, samples):
        for row in range(0, num_queries, rows):
            yield slice(sample, sample + samples), slice(row, row + rows)


def _buffers(queries: Tensor, keys: Tensor, count: int) -> list[Tensor]:
    """Return memory for a tile's weights, several times."""
    size = min(max(TILE, keys.shape[1]), queries.shape[0] * queries.shape[1] * keys.shape[1])
    return [queries.new_empty(size) for _ in range(count)]


def _shaped(buffer: Tensor, query: Tensor, key: Tensor) -> Tensor:
    shape = query.shape[0], query.shape[1], key.shape[2]
    return buffer[: shape[0] * shape[1] * shape[2]].view(shape)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[0], *inputs, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(grad.contiguous(), *ctx.saved_tensors)


@_attend.register_fake
def _(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    batch, rows, _ = queries.shape
    return values.new_empty(batch, rows, values.shape[2]), values.new_empty(batch, rows, 1, dtype=torch.float32)


@_gradients.register_fake
def _(
    grad: Tensor, out: Tensor, queries: Tensor, keys: Tensor, values: Tensor, log_sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    d_queries, d_keys, d_values = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (queries, keys, values)
    )
    return d_queries, d_keys, d_values


_attend.register_autograd(_backward, setup_context=_keep)


def attend_in_tiles(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return softmax(queries keys^T) values, differentiable once.

    Args:
        queries: (B, N, E), bfloat16 on a CPU.
        keys: (B, M, E).
        values: (B, M, V).

    Returns:
        (B, N, V).
    """
    out, _ = _attend(queries, keys, values)
    return out

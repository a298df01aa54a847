"""The compiled functions of lists of tensors, and random numbers; see kernels.py."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from hamgan.nn import kernel_library
from hamgan.nn.kernel_library import check, floats, format_of, usable


def takes_list(tensors: Sequence[Tensor]) -> bool:
    """Say whether `total_norm` takes tensors: dense, float32."""
    return bool(tensors) and all(
        tensor.dtype == torch.float32
        and (tensor.is_contiguous() or tensor.is_contiguous(memory_format=format_of(tensor)))
        and usable(tensor)
        for tensor in tensors
    )


def takes_pairs(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> bool:
    """Say whether `lerp` takes tensors: what `takes_list` takes, in pairs that lie alike."""
    return (
        takes_list([*targets, *sources])
        and len(targets) == len(sources)
        and all(
            one.shape == other.shape and one.stride() == other.stride()
            for one, other in zip(targets, sources, strict=True)
        )
    )


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all numbers of what `takes_list` takes, a scalar."""
    kernels = kernel_library.library()
    assert kernels is not None
    out = floats(1)
    check(
        kernels.hamgan_total_norm(
            _all_pointers(tensors), _sizes(tensors), len(tensors), out.data_ptr(), torch.get_num_threads()
        )
    )
    return out[0]


def lerp(targets: Sequence[Tensor], sources: Sequence[Tensor], weight: float) -> None:
    """Move tensors, what `takes_pairs` takes, towards others by `weight` of their difference, in place; 1: copy those."""
    kernels = kernel_library.library()
    assert kernels is not None
    check(
        kernels.hamgan_lerp(
            *(_all_pointers(targets), _all_pointers(sources), _sizes(targets), len(targets), weight),
            torch.get_num_threads(),
        )
    )
    for target in targets:
        increment_version(target)


def uniform(keys: Tensor, count: int) -> Tensor:
    """As counter_random.uniform, of keys on the CPU, int64 and contiguous."""
    kernels = kernel_library.library()
    assert kernels is not None
    out = floats(len(keys), count)
    kernels.hamgan_uniform(keys.data_ptr(), len(keys), count, out.data_ptr(), torch.get_num_threads())
    return out


def _all_pointers(tensors: Sequence[Tensor]) -> "ctypes.Array[ctypes.c_void_p]":
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


def _sizes(tensors: Sequence[Tensor]) -> "ctypes.Array[ctypes.c_long]":
    return (ctypes.c_long * len(tensors))(*[tensor.numel() for tensor in tensors])

"""The library of the compiled kernels: whether it is there, whose threads it has, what may be given to it, and how.

It is optional: `_kernels.c` is compiled when hamgan is installed if there is a compiler, for x86-64 with AVX2 or AVX-512. The
environment variable HAMGAN_KERNELS=0 leaves it out.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active as are_transforms_active
from torch._C import _get_tracing_state as tracing_state
from torch.compiler import is_compiling
from torch.nn import Parameter

_VERSION = 2  # of the C functions' arguments
_P, _L, _I, _F = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_MAP = (_I, _L, _L, _L)  # whether bfloat16, and three sizes
_FUNCTIONS = {
    "hamgan_spectral_norm": (None, [_P, _L, _L, _L, _P, _I, _I, _F, _F, _P, _P, _I, _I]),
    "hamgan_spectral_norm_gradient": (_I, [_P, _I, _P, _L, _L, _F, _P, _P, _I]),
    "hamgan_pool": (None, [_P, *_MAP, _F, _P, _P, _I]),
    "hamgan_unpool": (None, [_P, *_MAP, _F, _P, _P, _P, _I]),
    "hamgan_windows": (_I, [_P, _I, _L, _L, _L, _L, _I, _F, _P, _I, _P, _P, _P, _P, _I]),
    "hamgan_convolve": (_I, [_P, _L, _L, _L, _P, _L, _L, _L, _I, _I, _L, _L, _I, _P, _I, _P, _I]),
    "hamgan_kernel_gradient": (_I, [_P, _L, _L, _L, _P, _L, _L, _L, _L, _L, _L, _L, _I, _P, _I]),
    "hamgan_total_norm": (_I, [_P, _P, _L, _P, _I]),
    "hamgan_lerp": (_I, [_P, _P, _P, _L, _F, _I]),
    "hamgan_uniform": (None, [_P, _L, _L, _P, _I]),
    "hamgan_turn": (None, [_P, _I, _L, _L, _L, _P, _I]),
    "hamgan_channel_sums": (_I, [_P, _I, _P, _L, _L, _P, _P, _I]),
    "hamgan_nmf": (_I, [_P, *_MAP, _L, _L, _P, _P, _I, _F, _F, _I]),
    "hamgan_nmf_project": (_I, [_P, *_MAP, _L, _L, _P, _P, _P, _F, _P, _I]),
    "hamgan_norm_moments": (_I, [_P, *_MAP, _P, _P, _P, _P, _F, _I]),
    "hamgan_norm_apply": (None, [_P, *_MAP, _P, _P, _F, _P, _P, _I, _I, _P, _P, _I]),
    "hamgan_norm_gradient_sums": (_I, [_P, _P, *_MAP, _P, _P, _F, _P, _I, _I, _P, _P, _P, _P, _I]),
    "hamgan_norm_gradient": (_I, [_P, _P, *_MAP, _P, _P, _F, _I, _I, _P, _P, ctypes.c_double, _P, _I]),
}
LANES = 16
"""Channels that a vector holds."""
DTYPES = (torch.float32, torch.bfloat16)
"""Of the maps that kernels take."""
_switched_off = False


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Load what was compiled when hamgan was installed; None if nothing was, from other sources, or for other processors."""
    if os.environ.get("HAMGAN_KERNELS") == "0":
        return None
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_kernels" + suffix)
        if path.exists() and (found := load(path)) is not None:
            return found
    return None


def load(path: Path) -> ctypes.CDLL | None:
    """Load a compiled `_kernels.c`; None if it is of another machine or version, or cannot have torch's threads."""
    try:
        found = ctypes.CDLL(str(path))
        if found.hamgan_kernels_version() != _VERSION or found.hamgan_kernels_level() == 0:
            return None
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
        return found if _share_threads(found) else None
    except (OSError, AttributeError):
        return None


def _share_threads(kernels: ctypes.CDLL) -> bool:
    """Give the kernels torch's own OpenMP threads; say whether its library can be asked for them."""
    try:
        # A symbol is looked for in a library and then in all that it was linked with.
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        names = "GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"
        functions = [ctypes.cast(getattr(torch_cpu, name), _P) for name in names]
    except (OSError, AttributeError):
        return False
    kernels.hamgan_kernels_threads(*functions)
    return True


@contextmanager
def switched_off() -> Iterator[None]:
    """Take torch's operations within the context."""
    global _switched_off
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


def usable(tensor: Tensor) -> bool:
    """Say whether the kernels can be given a tensor's memory."""
    # A subclass may have none (torch's fake tensors), nor may those of torch.func; a trace would not see the calls.
    return (
        tensor.is_cpu
        and not _switched_off
        and not is_compiling()  # before all that a compiler cannot look into
        and type(tensor) in (Tensor, Parameter)
        and library() is not None
        and not are_transforms_active()
        and tracing_state() is None
    )


@lru_cache(maxsize=1)
def level() -> int:
    """Return which instructions there are: 0 too few, 1 AVX2, 2 AVX-512, 3 AVX-512 with products of bfloat16."""
    kernels = library()
    return 0 if kernels is None else int(kernels.hamgan_kernels_level())


def instructions() -> str:
    """Return which the kernels use here: `avx512_bf16`, `avx512`, `avx2`, or `none` where torch's operations are used."""
    return ("none", "avx2", "avx512", "avx512_bf16")[level()]


def takes_pixels(x: Tensor) -> bool:
    """Say whether a map (B, C, H, W) lies in channels_last memory, in float32 or bfloat16, where the kernels can be used."""
    return (
        x.dtype in DTYPES
        and x.dim() == 4
        and x.numel() > 0
        and usable(x)
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def format_of(weight: Tensor) -> torch.memory_format:
    """Return channels_last for a kernel that lies so."""
    last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def floats(*shape: int) -> Tensor:
    """Return float32 numbers that are not set."""
    return torch.empty(*shape, dtype=torch.float32, device="cpu")


def map_like(x: Tensor, batch: int, channels: int, height: int, width: int) -> Tensor:
    """Return a map in channels_last memory of the dtype of `x`, its numbers not set."""
    # Not a view of something else: autograd refuses to have those written over.
    strides = (height * width * channels, 1, width * channels, channels)
    return x.new_empty_strided((batch, channels, height, width), strides)


def pointer(tensor: Tensor | None) -> int | None:
    """Return where a tensor's memory begins; None: NULL."""
    return None if tensor is None else tensor.data_ptr()


def check(failed: int) -> None:
    """Raise if a kernel said that it failed: 1: memory; 2: called with what it is not for."""
    assert failed < 2, "a kernel was called with what it is not for"
    if failed:
        raise MemoryError("there is no memory left for the sums of a kernel's parts")

"""The compiled steps of NMF; see kernels.py."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hamgan.nn import kernel_library
from hamgan.nn.kernel_library import DTYPES, LANES, check, floats, pointer, usable

_LEVEL, _RANK, _DIM = 2, 64, 16384  # what it is for: AVX-512, and at most so many


def takes_columns(x: Tensor, rank: int) -> bool:
    """Say whether `nmf` takes columns (B, D, N), those of a channels_last map, float32 or bfloat16, and so many bases."""
    return (
        x.dtype in DTYPES
        and x.dim() == 3
        and rank <= _RANK
        and x.shape[1] <= _DIM
        and x.numel() > 0
        and x.stride()[1:] == (1, x.shape[1])
        and usable(x)
        and kernel_library.level() >= _LEVEL
    )


def nmf(x: Tensor, bases: Tensor, steps: int, *, inv_t: float, eps: float) -> tuple[Tensor, Tensor]:
    """Take multiplicative updates; return bases (B, D, R) and coef (B, N, R), as decomposition.NMF does.

    Args:
        x: What `takes_columns` takes.
        bases: To start from, float32 (B, D, R).
        steps: K; 0: the codes are the softmax of x^T bases.
        inv_t: The softmax's inverse temperature.
        eps: Added to denominators.
    """
    kernels = kernel_library.library()
    assert kernels is not None
    batch, dim, num_pixels = x.shape
    rank = bases.shape[2]
    bases = bases.clone(memory_format=torch.contiguous_format)
    coef = floats(batch, num_pixels, rank)
    check(
        kernels.hamgan_nmf(
            *(x.data_ptr(), x.dtype == torch.bfloat16, batch, num_pixels, dim, x.stride(0), rank),
            *(bases.data_ptr(), coef.data_ptr(), steps, inv_t, eps, torch.get_num_threads()),
        )
    )
    return bases, coef


def nmf_project(
    x: Tensor, bases: Tensor, *, coef: Tensor | None = None, scale: Tensor | None = None, eps: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return bases (scale * (x^T bases))^T, (B, D, N), in x's dtype and as columns of a channels_last map; and the scale.

    Args:
        x: What `takes_columns` takes.
        bases: float32 (B, D, R).
        coef: Codes (B, N, R), float32: the scale is then coef / (coef bases^T bases + eps).
        scale: From an earlier call, in place of coef.
        eps: Added to the denominator.
    """
    kernels = kernel_library.library()
    assert kernels is not None
    batch, dim, num_pixels = x.shape
    missing = -bases.shape[2] % LANES
    bases = F.pad(bases, (0, missing)) if missing else bases.contiguous()
    width = bases.shape[2]
    if coef is not None:
        coef = F.pad(coef, (0, missing)) if missing else coef.contiguous()
        scale = floats(batch, num_pixels, width)
    assert scale is not None
    out = x.new_empty(batch, num_pixels, dim).transpose(1, 2)
    check(
        kernels.hamgan_nmf_project(
            *(x.data_ptr(), x.dtype == torch.bfloat16, batch, num_pixels, dim, x.stride(0), width, bases.data_ptr()),
            *(pointer(coef), scale.data_ptr(), eps, out.data_ptr(), torch.get_num_threads()),
        )
    )
    return out, scale

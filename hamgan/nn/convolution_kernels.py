"""The compiled convolutions in bfloat16; see kernels.py."""

from functools import lru_cache

import torch
from torch import Tensor

from hamgan.nn import kernel_library
from hamgan.nn.kernel_library import check, map_like, pointer, takes_pixels

_LEVEL = 3  # products of bfloat16


def takes_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, *, spread: bool
) -> bool:
    """Say whether `convolve` and `convolve_gradient` take a map and a kernel, both bfloat16 in channels_last memory.

    Kernels have 1x1 or 3x3 pixels and same padding; of stride 2 and spread those of 3x3 alone, without padding, and of stride 2
    maps of odd sides from 3 on. A bias is (c_out,).
    """
    size = weight.shape[-1]
    if stride == 1 and not spread:
        fits = size in (1, 3) and padding == size // 2
    else:
        odd = min(x.shape[2:]) >= 3 and x.shape[2] % 2 == 1 and x.shape[3] % 2 == 1
        fits = size == 3 and padding == 0 and ((spread and stride == 1) or (stride == 2 and odd and not spread))
    return (
        fits
        and x.dtype == weight.dtype == torch.bfloat16
        and weight.shape[2] == size
        and x.shape[1] == weight.shape[1]
        and (bias is None or bias.shape == weight.shape[:1])
        and takes_pixels(x)
        and takes_pixels(weight)
        and kernel_library.level() >= _LEVEL
        and not _has_tiles()
    )


@lru_cache(maxsize=1)
def _has_tiles() -> bool:
    # Of AMX: oneDNN multiplies with these, several times faster.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16"))


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int, padding: int, spread: bool, relu: bool
) -> Tensor:
    """Convolve what `takes_convolution` takes; arguments and result as those of convolution.conv2d."""
    return _convolve(
        *(x, weight, bias), over_rows=True, turned=spread, stride=stride, padding=padding, scattered=spread, relu=relu
    )


def convolve_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, bool], *, stride: int, padding: int, spread: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x and weight, those of them that are needed.

    Args:
        grad: Of what `convolve` returned, bfloat16 in channels_last memory.
        x: As given to `convolve`; so are weight, stride, padding and spread.
        needed: Whether x's is, and whether the weight's is.
    """
    of_x = of_weight = None
    if needed[0] and spread:
        of_x = _convolve(grad, weight, over_rows=False, turned=True, stride=2, padding=0, scattered=False)
    elif needed[0]:
        one = stride == 1
        of_x = _convolve(grad, weight, over_rows=False, turned=one, stride=1, padding=padding, scattered=not one)
    if needed[1]:
        gathered, grid = (grad, x) if spread else (x, grad)
        of_weight = _kernel_gradient(gathered, grid, weight, 2 if spread else stride, padding, turned=spread)
    return of_x, of_weight


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    over_rows: bool,
    turned: bool,
    stride: int,
    padding: int,
    scattered: bool,
    relu: bool = False,
) -> Tensor:
    kernels = kernel_library.library()
    assert kernels is not None
    batch, _, height, width = x.shape
    rows, cols, size, _ = weight.shape
    if scattered:
        sides = 2 * height + 1, 2 * width + 1
    else:
        sides = (height + 2 * padding - size) // stride + 1, (width + 2 * padding - size) // stride + 1
    out = map_like(x, batch, rows if over_rows else cols, *sides)
    bias = None if bias is None else bias.float().contiguous()
    check(
        kernels.hamgan_convolve(
            *(x.data_ptr(), batch, height, width, weight.data_ptr(), rows, size, cols),
            *(over_rows, turned, stride, padding),
            *(scattered, pointer(bias), relu, out.data_ptr(), torch.get_num_threads()),
        )
    )
    return out


def _kernel_gradient(
    gathered: Tensor, grid: Tensor, weight: Tensor, stride: int, padding: int, *, turned: bool
) -> Tensor:
    kernels = kernel_library.library()
    assert kernels is not None
    out = torch.empty_like(weight)
    check(
        kernels.hamgan_kernel_gradient(
            *(gathered.data_ptr(), *gathered.shape[2:], gathered.shape[1]),
            *(grid.data_ptr(), grid.shape[0], *grid.shape[2:], grid.shape[1]),
            *(weight.shape[2], stride, padding, turned, out.data_ptr(), torch.get_num_threads()),
        )
    )
    return out


def turn(weight: Tensor) -> Tensor:
    """Turn a kernel (c_out, c_in, k, k) by 180 degrees and exchange its first axes, channels_last to channels_last."""
    kernels = kernel_library.library()
    assert kernels is not None
    rows, cols, height, width = weight.shape
    out = map_like(weight, cols, rows, height, width)
    kernels.hamgan_turn(
        *(weight.data_ptr(), weight.dtype == torch.bfloat16, rows, height * width, cols, out.data_ptr()),
        torch.get_num_threads(),
    )
    return out

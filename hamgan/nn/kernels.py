"""The compiled parts of a training step on a CPU: convolutions in bfloat16, spectral norm, batch norm, pooling, NMF, and more.

Where they cannot be used (see kernel_library.py), on other devices and through torch.compile, the layers are made of torch's
operations, which take many more passes over memory and many more calls. Both ways compute the same; sums are rounded in another
order. Every `takes_*` says what one of them may be given: they look at no sizes themselves.
"""

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import increment_version

from hamgan.nn import kernel_library
from hamgan.nn.kernel_library import usable

_LANES = 16  # channels that a vector holds
_NMF_LEVEL, _NMF_RANK, _NMF_DIM = 2, 64, 16384  # what the decomposition is for: AVX-512, and at most so many
_CONVOLUTION_LEVEL = 3  # products of bfloat16
_DTYPES = (torch.float32, torch.bfloat16)


def takes_weight(weight: Tensor, u: Tensor, dtype: torch.dtype, *, on_rows: bool) -> bool:
    """Say whether `spectral_norm` takes a weight, float32 and dense in either order of a kernel's axes, to this dtype."""
    return (
        weight.dtype == torch.float32
        and dtype in _DTYPES
        and weight.numel() > 0
        and usable(weight)
        and (weight.is_contiguous() or _format_of(weight) == torch.channels_last)
        and _is_plain(u, (torch.float32,))
        and u.numel() == (weight.shape[0] if on_rows else weight.numel() // weight.shape[0])
    )


def takes_map(x: Tensor) -> bool:
    """Say whether `channel_sums` takes a map: what `takes_pixels` takes, with C a multiple of 16."""
    return x.dim() == 4 and x.shape[1] % _LANES == 0 and takes_pixels(x)


def takes_norm(x: Tensor, running: tuple[Tensor, Tensor], gain: Tensor | None, bias: Tensor | None) -> bool:
    """Say whether the batch norm's kernels take a map and what belongs to it.

    Args:
        x: What `takes_map` takes, of more than one value a channel.
        running: Means and variances, float32 (C,).
        gain: (C,) or (B, C), float32 or bfloat16; or None.
        bias: Likewise.
    """
    if not takes_map(x):
        return False
    batch, channels = x.shape[:2]
    return (
        x.numel() > channels  # torch refuses one value
        and all(_is_plain(tensor, (torch.float32,)) and tensor.shape == (channels,) for tensor in running)
        and (gain is None) == (bias is None)
        and all(
            _is_plain(tensor, _DTYPES) and tensor.shape in ((channels,), (batch, channels))
            for tensor in (gain, bias)
            if tensor is not None
        )
        and (gain is None or bias is None or gain.shape == bias.shape)
    )


def _is_plain(tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in dtypes and tensor.is_contiguous()


def takes_pooling(x: Tensor) -> bool:
    """Say whether `pool` takes a map: what `takes_pixels` takes, with even sides."""
    return x.dim() == 4 and x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0 and takes_pixels(x)


def takes_pixels(x: Tensor) -> bool:
    """Say whether a map (B, C, H, W) lies in channels_last memory, in float32 or bfloat16, where the kernels can be used."""
    return (
        x.dtype in _DTYPES
        and x.dim() == 4
        and x.numel() > 0
        and usable(x)
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def takes_columns(x: Tensor, rank: int) -> bool:
    """Say whether `nmf` takes columns (B, D, N), those of a channels_last map, float32 or bfloat16, and so many bases."""
    return (
        x.dtype in _DTYPES
        and x.dim() == 3
        and rank <= _NMF_RANK
        and x.shape[1] <= _NMF_DIM
        and x.numel() > 0
        and x.stride()[1:] == (1, x.shape[1])
        and usable(x)
        and kernel_library.level() >= _NMF_LEVEL
    )


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
        and kernel_library.level() >= _CONVOLUTION_LEVEL
        and not _has_tiles()
    )


@lru_cache(maxsize=1)
def _has_tiles() -> bool:
    # Of AMX: oneDNN multiplies with these, several times faster.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16"))


def _format_of(weight: Tensor) -> torch.memory_format:
    last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def spectral_norm(
    weight: Tensor,
    u: Tensor,
    found: Tensor,
    *,
    on_rows: bool,
    advance: int,
    eps: float,
    smallest: float,
    dtype: torch.dtype,
) -> Tensor:
    """Take a power iteration and return weight / max(sigma, smallest), in `dtype` and the weight's order of axes.

    Args:
        weight: What `takes_weight` takes, of c_out rows.
        u: The vector that is kept, contiguous: (c_out,) where `on_rows`, otherwise over the remaining axes.
        found: Filled, float32 (c_out + columns + 2,): the left and the right vector, the latter in memory order, sigma, and
            what the weight was multiplied by.
        on_rows: On which side u is.
        advance: 0: u is held, and sigma that of it and one product; 1: an iteration; 2: an iteration, and u is stored;
            3: `found` is filled already.
        eps: Smallest norm by which a vector is divided.
        smallest: Smallest divisor.
        dtype: float32 or bfloat16.
    """
    kernels = kernel_library.library()
    assert kernels is not None
    out = torch.empty_like(weight, dtype=dtype)
    rows = weight.shape[0]
    taps = weight.shape[2] * weight.shape[3] if _format_of(weight) == torch.channels_last else 1
    kernels.hamgan_spectral_norm(
        *(weight.data_ptr(), rows, weight.numel() // rows, taps, u.data_ptr(), on_rows, advance, eps, smallest),
        *(found.data_ptr(), out.data_ptr(), dtype == torch.bfloat16, torch.get_num_threads()),
    )
    if advance == 2:
        increment_version(u)
    return out


def spectral_norm_gradient(grad: Tensor, weight: Tensor, found: Tensor, smallest: float) -> Tensor:
    """Return the gradient of `weight` from that of what `spectral_norm` returned, with which it left `found`."""
    kernels = kernel_library.library()
    assert kernels is not None
    if grad.dtype != torch.bfloat16:
        grad = grad.float()
    grad = grad.contiguous(memory_format=_format_of(weight))
    out = torch.empty_like(weight)
    rows = weight.shape[0]
    _check(
        kernels.hamgan_spectral_norm_gradient(
            *(grad.data_ptr(), grad.dtype == torch.bfloat16, weight.data_ptr(), rows, weight.numel() // rows, smallest),
            *(found.data_ptr(), out.data_ptr(), torch.get_num_threads()),
        )
    )
    return out


def pool(x: Tensor, by: float, *, relu: bool = False) -> tuple[Tensor, Tensor | None]:
    """Return the sums over every 2x2 pixels of what `takes_pooling` takes, times `by`; and its positive part where `relu`."""
    kernels = kernel_library.library()
    assert kernels is not None
    batch, channels, height, width = x.shape
    pooled = _map_like(x, batch, channels, height // 2, width // 2)
    positive = torch.empty_like(x) if relu else None
    kernels.hamgan_pool(
        *(x.data_ptr(), x.dtype == torch.bfloat16, batch * height, width, channels, by),
        *(pooled.data_ptr(), _pointer(positive), torch.get_num_threads()),
    )
    return pooled, positive


def unpool(
    pooled: Tensor, by: float, other: Tensor | None = None, value: Tensor | None = None, *, in_place: bool = False
) -> Tensor:
    """Give every pixel of (B, C, H, W) times `by` to 2x2 pixels, and add another map: (B, C, 2H, 2W).

    Args:
        pooled: What `takes_pixels` takes; the maps below are laid out alike.
        by: Its factor.
        other: Added.
        value: Of `other` only what lies where this is positive is added.
        in_place: Whether the result is written over `other`.
    """
    kernels = kernel_library.library()
    assert kernels is not None
    batch, channels, height, width = pooled.shape
    if in_place:
        assert other is not None
        out = other
    else:
        out = _map_like(pooled, batch, channels, 2 * height, 2 * width)
    kernels.hamgan_unpool(
        *(pooled.data_ptr(), pooled.dtype == torch.bfloat16, 2 * batch * height, 2 * width, channels, by),
        *(_pointer(other), _pointer(value), out.data_ptr(), torch.get_num_threads()),
    )
    return out


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
    out = _map_like(x, batch, rows if over_rows else cols, *sides)
    bias = None if bias is None else bias.float().contiguous()
    _check(
        kernels.hamgan_convolve(
            *(
                x.data_ptr(),
                batch,
                height,
                width,
                weight.data_ptr(),
                rows,
                size,
                cols,
                over_rows,
                turned,
                stride,
                padding,
            ),
            *(scattered, _pointer(bias), relu, out.data_ptr(), torch.get_num_threads()),
        )
    )
    return out


def _kernel_gradient(
    gathered: Tensor, grid: Tensor, weight: Tensor, stride: int, padding: int, *, turned: bool
) -> Tensor:
    kernels = kernel_library.library()
    assert kernels is not None
    out = torch.empty_like(weight)
    _check(
        kernels.hamgan_kernel_gradient(
            *(gathered.data_ptr(), *gathered.shape[2:], gathered.shape[1]),
            *(grid.data_ptr(), grid.shape[0], *grid.shape[2:], grid.shape[1]),
            *(weight.shape[2], stride, padding, turned, out.data_ptr(), torch.get_num_threads()),
        )
    )
    return out


def windows(
    x: Tensor, by: float, *, padded: bool, before: Tensor | None = None, relu: bool = False, after: Tensor | None = None
) -> Tensor:
    """Sum what `takes_map` takes over windows of two by two pixels, those at the border padded with zeros or left out.

    Args:
        x: (B, C, H, W).
        by: What the sums are multiplied by.
        padded: Whether zeros surround the map: (B, C, H + 1, W + 1), otherwise (B, C, H - 1, W - 1).
        before: (C,), added before the positive part is taken; None: 0.
        relu: Whether it is.
        after: (C,), added to the sums; None: 0.
    """
    return _windows(x, by, padded=padded, before=before, relu=relu, after=after)


def windows_gradient(
    grad: Tensor, by: float, *, padded: bool, before: Tensor | None = None, value: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the gradient of what `windows` was given, and that of `after`; with `value`, in its place that of `before`.

    Args:
        grad: Of the result, what `takes_map` takes.
        by: As given to `windows`; so is before.
        padded: As given to `windows`.
        value: The map, where its positive part was taken.
    """
    total = _floats(grad.shape[1])
    return _windows(grad, by, padded=not padded, before=before, value=value, total=total), total


def _windows(
    x: Tensor,
    by: float,
    *,
    padded: bool,
    before: Tensor | None = None,
    relu: bool = False,
    after: Tensor | None = None,
    value: Tensor | None = None,
    total: Tensor | None = None,
) -> Tensor:
    kernels = kernel_library.library()
    assert kernels is not None
    batch, channels, height, width = x.shape
    more = 1 if padded else -1
    out = _map_like(x, batch, channels, height + more, width + more)
    before, after = (None if shift is None else shift.float().contiguous() for shift in (before, after))
    _check(
        kernels.hamgan_windows(
            *(
                x.data_ptr(),
                x.dtype == torch.bfloat16,
                batch,
                height,
                width,
                channels,
                padded,
                by,
                _pointer(before),
                relu,
            ),
            *(_pointer(after), _pointer(value), out.data_ptr(), _pointer(total), torch.get_num_threads()),
        )
    )
    return out


def takes_kernel(weight: Tensor) -> bool:
    """Say whether `turn` takes a convolution's kernel: what `takes_pixels` takes."""
    return takes_pixels(weight)


def turn(weight: Tensor) -> Tensor:
    """Turn a kernel (c_out, c_in, k, k) by 180 degrees and exchange its first axes, channels_last to channels_last."""
    kernels = kernel_library.library()
    assert kernels is not None
    rows, cols, height, width = weight.shape
    out = _map_like(weight, cols, rows, height, width)
    kernels.hamgan_turn(
        *(weight.data_ptr(), weight.dtype == torch.bfloat16, rows, height * width, cols, out.data_ptr()),
        torch.get_num_threads(),
    )
    return out


def channel_sums(grad: Tensor, value: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return a map's gradient behind the ReLU that gave `value`, and its sum over all pixels, float32 (C,).

    Args:
        grad: What `takes_map` takes.
        value: Laid out alike; None: there was no ReLU, and the gradient comes back as it is.
    """
    kernels = kernel_library.library()
    assert kernels is not None
    masked = grad if value is None else torch.empty_like(grad)
    sums = _floats(grad.shape[1])
    _check(
        kernels.hamgan_channel_sums(
            *(grad.data_ptr(), grad.dtype == torch.bfloat16, _pointer(value), grad.numel() // grad.shape[1]),
            *(grad.shape[1], None if value is None else masked.data_ptr(), sums.data_ptr(), torch.get_num_threads()),
        )
    )
    return masked, sums


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
    coef = _floats(batch, num_pixels, rank)
    _check(
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
    missing = -bases.shape[2] % _LANES
    bases = F.pad(bases, (0, missing)) if missing else bases.contiguous()
    width = bases.shape[2]
    if coef is not None:
        coef = F.pad(coef, (0, missing)) if missing else coef.contiguous()
        scale = _floats(batch, num_pixels, width)
    assert scale is not None
    out = x.new_empty(batch, num_pixels, dim).transpose(1, 2)
    _check(
        kernels.hamgan_nmf_project(
            *(x.data_ptr(), x.dtype == torch.bfloat16, batch, num_pixels, dim, x.stride(0), width, bases.data_ptr()),
            *(_pointer(coef), scale.data_ptr(), eps, out.data_ptr(), torch.get_num_threads()),
        )
    )
    return out, scale


def norm_moments(x: Tensor, running: tuple[Tensor, Tensor] | None, momentum: float) -> Tensor:
    """Return mean and biased variance of each channel, float32 (2, C); move the running ones, where given."""
    kernels = kernel_library.library()
    assert kernels is not None
    moments = _floats(2, x.shape[1])
    mean, var = (None, None) if running is None else (tensor.data_ptr() for tensor in running)
    _check(
        kernels.hamgan_norm_moments(
            x.data_ptr(), *_map(x), *_pointers(moments), mean, var, momentum, torch.get_num_threads()
        )
    )
    for tensor in running or ():
        increment_version(tensor)
    return moments


def norm_apply(
    x: Tensor, moments: Tensor, eps: float, gain: Tensor | None, bias: Tensor | None, *, relu: bool
) -> tuple[Tensor, Tensor]:
    """Return gain * (x - mean) / sqrt(var + eps) + bias, or its positive part, and the scales that the gradient needs.

    Args:
        x: What `takes_map` takes.
        moments: Mean and variance, (2, C).
        eps: Added to the variance.
        gain: float32, contiguous, (C,) or (B, C); None: 1.
        bias: Likewise; None: 0.
        relu: Whether the positive part is taken.
    """
    kernels = kernel_library.library()
    assert kernels is not None
    each = gain is not None and gain.dim() == 2
    scales = _floats(2, x.shape[0] if each else 1, x.shape[1])
    y = torch.empty_like(x)
    kernels.hamgan_norm_apply(
        *(x.data_ptr(), *_map(x), *_pointers(moments), eps, _pointer(gain), _pointer(bias), each, relu),
        *(scales.data_ptr(), y.data_ptr(), torch.get_num_threads()),
    )
    return y, scales


def norm_gradient_sums(
    grad: Tensor, x: Tensor, moments: Tensor, eps: float, gain: Tensor | None, scales: Tensor, *, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of gain and bias, and the sums of each channel that the map's gradient needs, (2, C).

    Args:
        grad: Of what `norm_apply` returned, laid out as x.
        x: As given to `norm_apply`; so are moments, eps, gain and relu.
        scales: From `norm_apply`.
    """
    kernels = kernel_library.library()
    assert kernels is not None
    each = gain is not None and gain.dim() == 2
    shape = (x.shape[0], x.shape[1]) if each else (x.shape[1],)
    dgain, dbias, totals = _floats(*shape), _floats(*shape), _floats(2, x.shape[1])
    _check(
        kernels.hamgan_norm_gradient_sums(
            *(grad.data_ptr(), x.data_ptr(), *_map(x), *_pointers(moments), eps, _pointer(gain), each, relu),
            *(scales.data_ptr(), dgain.data_ptr(), dbias.data_ptr(), totals.data_ptr(), torch.get_num_threads()),
        )
    )
    return dgain, dbias, totals


def norm_gradient(
    grad: Tensor, x: Tensor, moments: Tensor, eps: float, scales: Tensor, totals: Tensor, count: int, *, relu: bool
) -> Tensor:
    """Return the map's gradient; `totals` are the sums of `norm_gradient_sums`, over `count` values a channel in all."""
    kernels = kernel_library.library()
    assert kernels is not None
    dx = torch.empty_like(x)
    _check(
        kernels.hamgan_norm_gradient(
            *(grad.data_ptr(), x.data_ptr(), *_map(x), *_pointers(moments), eps, scales.shape[1] > 1, relu),
            *(scales.data_ptr(), totals.data_ptr(), count, dx.data_ptr(), torch.get_num_threads()),
        )
    )
    return dx


def takes_list(tensors: Sequence[Tensor]) -> bool:
    """Say whether `total_norm` takes tensors: dense, float32."""
    return bool(tensors) and all(
        tensor.dtype == torch.float32
        and (tensor.is_contiguous() or tensor.is_contiguous(memory_format=_format_of(tensor)))
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
    out = _floats(1)
    _check(
        kernels.hamgan_total_norm(
            _all_pointers(tensors), _sizes(tensors), len(tensors), out.data_ptr(), torch.get_num_threads()
        )
    )
    return out[0]


def lerp(targets: Sequence[Tensor], sources: Sequence[Tensor], weight: float) -> None:
    """Move tensors, what `takes_pairs` takes, towards others by `weight` of their difference, in place; 1: copy those."""
    kernels = kernel_library.library()
    assert kernels is not None
    _check(
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
    out = _floats(len(keys), count)
    kernels.hamgan_uniform(keys.data_ptr(), len(keys), count, out.data_ptr(), torch.get_num_threads())
    return out


def _all_pointers(tensors: Sequence[Tensor]) -> "ctypes.Array[ctypes.c_void_p]":
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


def _sizes(tensors: Sequence[Tensor]) -> "ctypes.Array[ctypes.c_long]":
    return (ctypes.c_long * len(tensors))(*[tensor.numel() for tensor in tensors])


def _floats(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=torch.float32, device="cpu")


def _map_like(x: Tensor, batch: int, channels: int, height: int, width: int) -> Tensor:
    # Not a view of something else: autograd refuses to have those written over.
    strides = (height * width * channels, 1, width * channels, channels)
    return x.new_empty_strided((batch, channels, height, width), strides)


def _map(x: Tensor) -> tuple[bool, int, int, int]:
    return x.dtype == torch.bfloat16, x.shape[0], x.shape[2] * x.shape[3], x.shape[1]


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _pointers(pair: Tensor) -> tuple[int, int]:
    first: int = pair.data_ptr()
    return first, first + pair.stride(0) * 4


def _check(failed: int) -> None:
    assert failed < 2, "a kernel was called with what it is not for"
    if failed:
        raise MemoryError("there is no memory left for the sums of a kernel's parts")

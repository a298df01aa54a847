"""The compiled parts of a training step on a CPU: spectral norm, batch norm, pooling, sums over windows, gradients of biases.

Beside it: convolution_kernels.py, decomposition_kernels.py and tensor_kernels.py.

Where they cannot be used (see kernel_library.py), on other devices and through torch.compile, the layers are made of torch's
operations, which take many more passes over memory and many more calls. Both ways compute the same; sums are rounded in another
order. Every `takes_*` says what one of them may be given: they look at no sizes themselves.
"""

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from hamgan.nn import kernel_library
from hamgan.nn.kernel_library import DTYPES, LANES, check, floats, format_of, map_like, pointer, takes_pixels, usable


def takes_weight(weight: Tensor, u: Tensor, dtype: torch.dtype, *, on_rows: bool) -> bool:
    """Say whether `spectral_norm` takes a weight, float32 and dense in either order of a kernel's axes, to this dtype."""
    return (
        weight.dtype == torch.float32
        and dtype in DTYPES
        and weight.numel() > 0
        and usable(weight)
        and (weight.is_contiguous() or format_of(weight) == torch.channels_last)
        and _is_plain(u, (torch.float32,))
        and u.numel() == (weight.shape[0] if on_rows else weight.numel() // weight.shape[0])
    )


def takes_map(x: Tensor) -> bool:
    """Say whether `channel_sums` takes a map: what `takes_pixels` takes, with C a multiple of 16."""
    return x.dim() == 4 and x.shape[1] % LANES == 0 and takes_pixels(x)


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
            _is_plain(tensor, DTYPES) and tensor.shape in ((channels,), (batch, channels))
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
    taps = weight.shape[2] * weight.shape[3] if format_of(weight) == torch.channels_last else 1
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
    grad = grad.contiguous(memory_format=format_of(weight))
    out = torch.empty_like(weight)
    rows = weight.shape[0]
    check(
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
    pooled = map_like(x, batch, channels, height // 2, width // 2)
    positive = torch.empty_like(x) if relu else None
    kernels.hamgan_pool(
        *(x.data_ptr(), x.dtype == torch.bfloat16, batch * height, width, channels, by),
        *(pooled.data_ptr(), pointer(positive), torch.get_num_threads()),
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
        out = map_like(pooled, batch, channels, 2 * height, 2 * width)
    kernels.hamgan_unpool(
        *(pooled.data_ptr(), pooled.dtype == torch.bfloat16, 2 * batch * height, 2 * width, channels, by),
        *(pointer(other), pointer(value), out.data_ptr(), torch.get_num_threads()),
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
    total = floats(grad.shape[1])
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
    out = map_like(x, batch, channels, height + more, width + more)
    before, after = (None if shift is None else shift.float().contiguous() for shift in (before, after))
    check(
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
                pointer(before),
                relu,
            ),
            *(pointer(after), pointer(value), out.data_ptr(), pointer(total), torch.get_num_threads()),
        )
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
    sums = floats(grad.shape[1])
    check(
        kernels.hamgan_channel_sums(
            *(grad.data_ptr(), grad.dtype == torch.bfloat16, pointer(value), grad.numel() // grad.shape[1]),
            *(grad.shape[1], None if value is None else masked.data_ptr(), sums.data_ptr(), torch.get_num_threads()),
        )
    )
    return masked, sums


def norm_moments(x: Tensor, running: tuple[Tensor, Tensor] | None, momentum: float) -> Tensor:
    """Return mean and biased variance of each channel, float32 (2, C); move the running ones, where given."""
    kernels = kernel_library.library()
    assert kernels is not None
    moments = floats(2, x.shape[1])
    mean, var = (None, None) if running is None else (tensor.data_ptr() for tensor in running)
    check(
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
    scales = floats(2, x.shape[0] if each else 1, x.shape[1])
    y = torch.empty_like(x)
    kernels.hamgan_norm_apply(
        *(x.data_ptr(), *_map(x), *_pointers(moments), eps, pointer(gain), pointer(bias), each, relu),
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
    dgain, dbias, totals = floats(*shape), floats(*shape), floats(2, x.shape[1])
    check(
        kernels.hamgan_norm_gradient_sums(
            *(grad.data_ptr(), x.data_ptr(), *_map(x), *_pointers(moments), eps, pointer(gain), each, relu),
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
    check(
        kernels.hamgan_norm_gradient(
            *(grad.data_ptr(), x.data_ptr(), *_map(x), *_pointers(moments), eps, scales.shape[1] > 1, relu),
            *(scales.data_ptr(), totals.data_ptr(), count, dx.data_ptr(), torch.get_num_threads()),
        )
    )
    return dx


def _map(x: Tensor) -> tuple[bool, int, int, int]:
    return x.dtype == torch.bfloat16, x.shape[0], x.shape[2] * x.shape[3], x.shape[1]


def _pointers(pair: Tensor) -> tuple[int, int]:
    first: int = pair.data_ptr()
    return first, first + pair.stride(0) * 4

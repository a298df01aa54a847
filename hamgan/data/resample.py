"""Centre crop and named resize of uint8 images, by exact arithmetic.

The antialiased filters have Pillow's kernels and windows. Each pass is a product of banded matrices whose weights
are integers over 2^14; products of those with pixels, and all their sums, stay below 2^24, so float32 holds them
exactly: whatever order, blocking or fused operations a BLAS uses, the result is the same on every machine, and that of
compiled.py, which computes the same sums in integers where it can.
Between the passes values are rounded to integers but not clipped to 0..255, so ringing beside saturated edges
is cut once, at the end; Pillow cuts it twice, and is further from the exact result there.
"""

from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hamgan.data import compiled

Resize = Literal["lanczos", "box", "bilinear", "tfgan", "none"]
RESIZES: tuple[str, ...] = get_args(Resize)

_SUPPORT = {"lanczos": 3.0, "bilinear": 1.0, "box": 0.5}
_WEIGHT_SCALE = 2.0**14
_BLOCK = 8  # output rows per product: measured best of 4, 8, 16, 32 for 375 -> 128
_WHOLE = 1024  # up to this side an image is turned into floats as a whole

# (first output row, first input row, end of input rows, weights (rows, inputs), the same for interleaved RGB)
Band = tuple[int, int, int, NDArray[np.float32], NDArray[np.float32]]


def resize_square(
    image: NDArray[np.uint8], resolution: int, resize: str, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Cut the largest centred square and scale it.

    Args:
        image: Pixels, (H, W, 3), values 0..255.
        resolution: Output side, pixels.
        resize: One of `RESIZES`.
        out: Where to put the result, C-contiguous; None for new memory.

    Returns:
        Pixels, (resolution, resolution, 3), C-contiguous. The very pixels of the crop if its side is `resolution`.

    Raises:
        ValueError: If `resize` is "none" and the image is not resolution x resolution.
    """
    height, width = image.shape[:2]
    if resize == "none" and (height, width) != (resolution, resolution):
        raise ValueError(f"is {width}x{height}, and resize 'none' takes {resolution}x{resolution} only")
    top, left, side = centre_square(height, width, resize)
    if out is None:
        out = np.empty((resolution, resolution, 3), np.uint8)
    crop = image[top : top + side, left : left + side]
    if side == resolution:
        out[...] = crop
    elif resize == "tfgan":
        out[...] = _endpoint_bilinear(crop, resolution)
    elif compiled.takes(crop, resolution):
        compiled.scale(crop, _plan(side, resolution, resize), out)
    else:
        out[...] = _filtered(crop, resolution, resize)
    return out


def centre_square(height: int, width: int, resize: str) -> tuple[int, int, int]:
    """Return where the largest centred square of an image is: (top, left, side), pixels."""
    side = min(height, width)
    # TF-GAN rounds the margin up where everyone else rounds it down.
    odd = 1 if resize == "tfgan" else 0
    return (height - side + odd) // 2, (width - side + odd) // 2, side


def _filtered(crop: NDArray[np.uint8], resolution: int, resize: str) -> NDArray[np.uint8]:
    side = crop.shape[0]
    bands = _bands(side, resolution, resize)
    # All at once is faster; a large photograph goes band by band, or it would take gigabytes in many processes.
    pixels = crop.astype(np.float32).reshape(side, side * 3) if side <= _WHOLE else None
    rows = np.empty((resolution, side * 3), np.float32)
    for out, start, end, weights, _ in bands:
        band = pixels[start:end] if pixels is not None else crop[start:end].astype(np.float32).reshape(-1, side * 3)
        np.matmul(weights, band, out=rows[out : out + len(weights)])
    np.rint(rows, out=rows)
    result = np.empty((resolution, resolution * 3), np.float32)
    for out, start, end, weights, interleaved in bands:
        np.matmul(rows[:, 3 * start : 3 * end], interleaved, out=result[:, 3 * out : 3 * (out + len(weights))])
    np.rint(result, out=result)
    np.clip(result, 0, 255, out=result)
    return result.astype(np.uint8).reshape(resolution, resolution, 3)


@lru_cache(maxsize=128)
def _plan(size_in: int, size_out: int, resize: str) -> compiled.Plan:
    return compiled.Plan(resize_weights(size_in, size_out, resize), compiled.available())


@lru_cache(maxsize=128)
def _bands(size_in: int, size_out: int, resize: str) -> list[Band]:
    """Cut the (size_out, size_in) weight matrix into bands of `_BLOCK` rows without their zero columns."""
    matrix = resize_weights(size_in, size_out, resize)
    bands: list[Band] = []
    for out in range(0, size_out, _BLOCK):
        block = matrix[out : out + _BLOCK]
        used = np.flatnonzero(block.any(axis=0))
        start, end = int(used[0]), int(used[-1]) + 1
        weights = np.ascontiguousarray(block[:, start:end], np.float32)
        interleaved = np.kron(weights.T, np.eye(3, dtype=np.float32))
        bands.append((out, start, end, weights, np.ascontiguousarray(interleaved)))
    return bands


def resize_weights(size_in: int, size_out: int, resize: str) -> NDArray[np.float64]:
    """Weights of one pass, (size_out, size_in); multiples of 2^-14, each row sums to exactly 1."""
    scale = size_in / size_out
    stretch = max(scale, 1.0)  # the antialias: a kernel as wide as an output pixel
    support = _SUPPORT[resize] * stretch
    centers = (np.arange(size_out) + 0.5) * scale
    first = np.maximum((centers - support + 0.5).astype(int), 0)[:, None]
    last = np.minimum((centers + support + 0.5).astype(int), size_in)[:, None]
    positions = np.arange(size_in)[None]
    x = (positions - centers[:, None] + 0.5) / stretch
    if resize == "lanczos":
        weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    elif resize == "bilinear":
        weights = np.maximum(1 - np.abs(x), 0.0)
    else:
        weights = ((x > -0.5) & (x <= 0.5)).astype(np.float64)
    weights = np.where((positions >= first) & (positions < last), weights, 0.0)
    # Rounding the running sums, not the weights, keeps each row's sum: a flat image stays as it is.
    sums = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
    return np.diff(np.rint(sums * _WEIGHT_SCALE), axis=1, prepend=0) / _WEIGHT_SCALE


def _endpoint_bilinear(crop: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    """Interpolate as TensorFlow's crop_and_resize does: corner pixels map to corner pixels, no antialias.

    Source: TF-GAN's ImageNet input, used by the official HamGAN: src = dst * (in - 1) / (out - 1). It trains on the
        unquantised floats; here they are rounded to the nearest integer.
    """
    side = crop.shape[0]
    step = np.float32(side - 1) / np.float32(max(resolution - 1, 1))
    position = np.minimum(np.arange(resolution, dtype=np.float32) * step, np.float32(side - 1))
    low = np.floor(position).astype(int)
    high = np.ceil(position).astype(int)
    fraction = position - low.astype(np.float32)
    across = fraction[None, :, None]
    down = fraction[:, None, None]
    pixels = np.ascontiguousarray(crop).reshape(side * side, 3)

    def corner(rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[np.float32]:
        return pixels.take(rows[:, None] * side + columns, axis=0).astype(np.float32)

    top, bottom = corner(low, low), corner(high, low)
    top += (corner(low, high) - top) * across
    bottom += (corner(high, high) - bottom) * across
    return (top + (bottom - top) * down + np.float32(0.5)).astype(np.uint8)  # casting rounds down

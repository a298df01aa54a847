"""The antialiased resize in C, where it was compiled and the processor has the instructions.

It is optional: `_resize.c` is compiled when hamgan is installed if there is a compiler, for x86-64 with AVX2 or
AVX-512. Its arithmetic is that of resample.py in integers, and gives the same pixels.
"""

import ctypes
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMALLEST_SIDE = 22  # of the input, pixels: a row fills a vector of 64 bytes
_SMALLEST_RESULT = 4  # pixels: so many are made at a time
_VERSION = 2  # of the C function's arguments
_WHOLE_WEIGHT = 2**14


class Plan:
    """Weights of both passes in the order in which the C code takes them, as int16 multiples of 2^-14.

    Attributes:
        level: Instructions that it is for: 1 AVX2, 2 AVX-512.
        resolution: Output side, pixels, R.
    """

    def __init__(self, matrix: NDArray[np.float64], level: int) -> None:
        """Lay out the weights of one pass, (R, side), multiples of 2^-14, for both passes."""
        weights = np.rint(matrix * _WHOLE_WEIGHT).astype(np.int16)
        self.level = level
        self.resolution = len(weights)
        used = weights != 0
        first = used.argmax(axis=1)
        end = weights.shape[1] - used[:, ::-1].argmax(axis=1)
        down, along = _down(weights, first, end), _along(weights, first, end, 2 * level)
        self._arrays = [_aligned(array) for array in (*down, *along)]  # kept for their memory
        pointers = [array.ctypes.data for array in self._arrays]
        self.down = (*pointers[:3], down[2].shape[1])
        self.along = (*pointers[3:], along[1].shape[1])


def _down(weights: NDArray[np.int16], first: NDArray[np.intp], end: NDArray[np.intp]) -> tuple[NDArray[Any], ...]:
    """Return of each two output rows: their first input row, how many there are, and the weights.

    The weights are (ceil(R / 2), pairs of input rows, output row of the two, input row of the pair).
    """
    resolution = len(weights)
    two = np.arange(0, resolution, 2)
    other = np.minimum(two + 1, resolution - 1)
    start, stop = np.minimum(first[two], first[other]), np.maximum(end[two], end[other])
    result = np.zeros((len(two), int((stop - start).max() + 1) // 2, 2, 2), np.int16)
    for i in range(len(two)):
        for k, row in enumerate((two[i], other[i])):
            line = np.zeros(result.shape[1] * 2, np.int16)
            line[: stop[i] - start[i]] = weights[row, start[i] : stop[i]]
            result[i, :, k] = line.reshape(-1, 2)
    return start.astype(np.int32), (stop - start).astype(np.int32), result


def _along(weights: NDArray[np.int16], first: NDArray[np.intp], end: NDArray[np.intp],
           pairs_of_vector: int) -> tuple[NDArray[Any], ...]:  # fmt: skip
    """Return of each output pixel: its first pair of input pixels, and the weights.

    The weights are (R, pairs of input pixels, pixel of the pair).
    """
    start = first // 2
    num_pairs = int((-(-end // 2) - start).max())
    num_pairs = -(-num_pairs // pairs_of_vector) * pairs_of_vector
    columns = 2 * start[:, None] + np.arange(2 * num_pairs)
    picked = np.take_along_axis(np.pad(weights, ((0, 0), (0, 2 * num_pairs))), columns, axis=1)
    return start.astype(np.int32), picked.reshape(len(weights), num_pairs, 2)


def _aligned(array: NDArray[Any]) -> NDArray[Any]:
    """Copy an array to memory that begins at a multiple of 64 bytes, where vectors are read fastest."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    result = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    result[...] = array
    return result


def takes(crop: NDArray[np.uint8], resolution: int) -> bool:
    """Say whether `scale` can be used, for a square that lies in memory like this one and a result of this side."""
    return (
        available() > 0
        and crop.shape[0] >= _SMALLEST_SIDE
        and resolution >= _SMALLEST_RESULT
        and crop.strides[1:] == (3, 1)
    )


def scale(crop: NDArray[np.uint8], plan: Plan, out: NDArray[np.uint8]) -> None:
    """Scale a square with the compiled code.

    Args:
        crop: Pixels, (side, side, 3), that `takes` takes.
        plan: Of its side.
        out: Where to put the result, (R, R, 3), C-contiguous.

    Raises:
        MemoryError: If there is none left.
    """
    library = _library()
    assert library is not None and out.flags.c_contiguous and out.shape == (plan.resolution, plan.resolution, 3)
    if library.hamgan_resize(plan.level, crop.ctypes.data, crop.strides[0], crop.shape[0], plan.resolution, *plan.down,
                             *plan.along, out.ctypes.data):  # fmt: skip
        raise MemoryError


@lru_cache(maxsize=1)
def available() -> int:
    """Say what can be used: 0 nothing, 1 AVX2, 2 AVX-512."""
    library = _library()
    return int(library.hamgan_resize_level()) if library is not None else 0


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    """Load what was compiled when hamgan was installed; None if nothing was, or from other sources."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_resize" + suffix)
        if path.exists() and (library := load(path)) is not None:
            return library
    return None


def load(path: Path) -> ctypes.CDLL | None:
    """Load a compiled `_resize.c`; None if it is of another machine or version."""
    try:
        library = ctypes.CDLL(str(path))
        if library.hamgan_resize_version() != _VERSION:
            return None
        if library.hamgan_resize_level() == 0:  # and then it may have no hamgan_resize
            return None
        function = library.hamgan_resize
    except (OSError, AttributeError):
        return None
    pointer, integer, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_long
    function.argtypes = [
        *(integer, pointer, size, integer, integer),
        *(pointer, pointer, pointer, integer),
        *(pointer, pointer, integer),
        pointer,
    ]
    return library

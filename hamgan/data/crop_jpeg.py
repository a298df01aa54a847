"""Decoding of a JPEG's centred square alone, where that was compiled and the library for it is at hand.

What lies beside the square is only entropy-decoded, and Huffman codes, which take four fifths of libjpeg-turbo's time, are
decoded by our own code: a third of the time is saved, and the pixels are those of a whole decode. It is optional: `_jpeg.c`
is compiled when hamgan is installed if there are a compiler and libjpeg-turbo's header `jpeglib.h`. The library itself is
the one that Pillow brings.
"""

import ctypes
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import _imaging, features

_VERSION = 3  # of the C functions' arguments
MOST_PIXELS = 2**26  # larger ones are left to Pillow, which refuses what must be an attack
_OLDEST = 3  # libjpeg-turbo: before, skipping rows had errors
_KNOWN = (3,)  # whose Huffman decoding can be replaced
_KEPT = 2**24  # bytes of memory at most
_ROOM = 64  # pixels that a row is wider than the square at most: twice a margin and a column of blocks
# In the order of the struct in _jpeg.c.
_FUNCTIONS = (
    *("jpeg_std_error", "jpeg_CreateDecompress", "jpeg_mem_src", "jpeg_read_header", "jpeg_start_decompress"),
    *("jpeg_crop_scanline", "jpeg_skip_scanlines", "jpeg_read_scanlines", "jpeg_finish_decompress"),
    *("jpeg_abort_decompress", "jpeg_destroy_decompress"),
)


Place = Callable[[int, int], tuple[int, int, int]]


class SquareDecoder:
    """Decodes the centred squares of JPEGs into memory that it uses again and again."""

    def __init__(self, library: ctypes.CDLL, decoder: int) -> None:
        self._library, self._decoder = library, decoder
        self._memory = np.empty(0, np.uint8)
        self._shape = (ctypes.c_int * 2)()
        self._offset = ctypes.c_int()

    def square(self, data: bytes, place: Place) -> NDArray[np.uint8] | None:
        """Decode a square of a JPEG.

        Args:
            data: The file.
            place: Tells of a height and a width, in pixels, where the square is: (top, left, side).

        Returns:
            Pixels, (side, side, 3), valid until the next call; None if the JPEG is one for another decoder: of an
            unusual kind, or damaged.
        """
        if self._library.hamgan_jpeg_header(self._decoder, data, len(data), self._shape):
            return None
        height, width = self._shape
        if height * width > MOST_PIXELS:
            return None
        top, left, side = place(height, width)
        stride = 3 * (side + _ROOM)
        needed = stride * (side + 1)
        memory = self._memory if needed <= len(self._memory) else np.empty(needed, np.uint8)
        if needed <= _KEPT:
            self._memory = memory
        if self._library.hamgan_jpeg_square(self._decoder, top, left, side, _ROOM, memory.ctypes.data, stride,
                                            ctypes.byref(self._offset)):  # fmt: skip
            return None
        rows = memory[: stride * side].reshape(side, side + _ROOM, 3)
        return rows[:, self._offset.value : self._offset.value + side]

    @property
    def taken_over(self) -> int:
        """How many images' Huffman codes were decoded by our own code; -1 if that is not used."""
        return int(self._library.hamgan_jpeg_taken_over(self._decoder))

    def __del__(self) -> None:
        """Release the library's memory."""
        self._library.hamgan_jpeg_close(self._decoder)


def has_own_huffman() -> bool:
    """Say whether JPEGs' Huffman codes are decoded by our own code on this machine."""
    decoder = square_decoder()
    return decoder is not None and decoder.taken_over >= 0


def square_decoder() -> SquareDecoder | None:
    """Make a decoder, for one thread at a time; None if there can be none on this machine."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_jpeg" + suffix)
        if path.exists() and (decoder := load(path)) is not None:
            return decoder
    return None


def load(path: Path, *, own_huffman: bool = True) -> SquareDecoder | None:
    """Load a compiled `_jpeg.c`.

    Args:
        path: The library.
        own_huffman: Whether Huffman codes are decoded by it, where it can, and not by libjpeg-turbo.

    Returns:
        A decoder; None if the library is of another machine or version, or Pillow's of another kind.
    """
    try:
        version = int((features.version("libjpeg_turbo") or "0").split(".")[0])
        if version < _OLDEST:
            return None
        jpeg = ctypes.CDLL(_imaging.__file__)  # its symbols include those of the libraries that it needs
        functions = (ctypes.c_void_p * len(_FUNCTIONS))(
            *(ctypes.cast(getattr(jpeg, name), ctypes.c_void_p).value for name in _FUNCTIONS)
        )
        library = ctypes.CDLL(str(path))
        if library.hamgan_jpeg_version() != _VERSION:
            return None
        pointer, integer, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_long
        library.hamgan_jpeg_open.restype = pointer
        library.hamgan_jpeg_open.argtypes = [pointer, integer]
        library.hamgan_jpeg_close.restype = None
        library.hamgan_jpeg_close.argtypes = [pointer]
        library.hamgan_jpeg_taken_over.restype = size
        library.hamgan_jpeg_taken_over.argtypes = [pointer]
        library.hamgan_jpeg_header.argtypes = [pointer, ctypes.c_char_p, size, pointer]
        library.hamgan_jpeg_square.argtypes = [pointer, *[integer] * 4, pointer, size, pointer]
        decoder = library.hamgan_jpeg_open(functions, own_huffman and version in _KNOWN)
    except (OSError, AttributeError, ValueError):
        return None
    return SquareDecoder(library, decoder) if decoder else None

"""Pages of a file written and read past the system's cache, where the system can.

Through the cache every byte is copied once more, into a page that must be found first and that something else may need;
and reading it back proves little, as it comes from there and not from the disk.
"""

import mmap
import os
from math import gcd
from pathlib import Path

from hamgan.data.fileio import crc32, crc32_at, write_all
from hamgan.data.format import BLOCK_IMAGES

ALIGNMENT = 4096
"""Bytes: memory, places and sizes are multiples of this; what is not goes through the cache."""
_PIECE = 2**19  # bytes that are read or written at once: they are still in the processor's cache
_LARGEST_PIECE = 2**20


def images_at_once(image_bytes: int) -> tuple[int, bool]:
    """Choose how many images of so many bytes are written together, and say whether those are whole pages."""
    count = min(max(1, _PIECE // image_bytes), BLOCK_IMAGES)
    period = ALIGNMENT // gcd(image_bytes, ALIGNMENT)
    rounded = -(-count // period) * period
    # A block's last images are whole pages too: it holds a power of two of images, and so is the period.
    if rounded * image_bytes <= max(_LARGEST_PIECE, image_bytes) and rounded <= BLOCK_IMAGES:
        return rounded, True
    return count, False


def page_memory(size: int) -> memoryview:
    """Return zeroed memory that begins at a page."""
    return memoryview(mmap.mmap(-1, size))


class DirectFile:
    """An open file whose pages go past the cache, or through it where the file system refuses."""

    def __init__(self, path: Path, fd: int, *, direct: bool) -> None:
        """Take an open file.

        Args:
            path: Its path.
            fd: Open for reading and writing; stays the caller's.
            direct: Whether to try at all.
        """
        self._fd = fd
        self._direct = -1
        self._refused = False
        if direct and hasattr(os, "O_DIRECT"):
            try:
                self._direct = os.open(path, os.O_RDWR | os.O_DIRECT)
            except OSError:  # such as a file system in memory
                self._refused = True

    def write(self, data: memoryview, position: int) -> None:
        """Write all bytes at a position.

        Raises:
            OSError: If the disk is full or fails.
        """
        if self._takes(len(data), position):
            try:
                write_all(self._direct, data, position)
                return
            except OSError:
                # It refuses such writes, or wrote a part that ends within a page; what truly fails fails again.
                self._refused = True
        write_all(self._fd, data, position)

    def crc32(self, size: int, position: int) -> int:
        """CRC32 of the bytes at a position, or of those up to the end of the file; in little memory."""
        if self._takes(size, position):
            try:
                return self._crc32_direct(size, position)
            except OSError:
                self._refused = True
        return crc32_at(self._fd, size, position)

    def _crc32_direct(self, size: int, position: int) -> int:
        buffer = page_memory(min(size, _PIECE))
        crc = 0
        while size > 0 and (count := os.preadv(self._direct, [buffer[:size]], position)):
            crc = crc32(buffer[:count], crc)
            size -= count
            position += count
        return crc

    def _takes(self, size: int, position: int) -> bool:
        return self._direct >= 0 and not self._refused and size % ALIGNMENT == 0 and position % ALIGNMENT == 0

    def close(self) -> None:
        """Close what was opened here."""
        if self._direct >= 0:
            os.close(self._direct)
        self._direct = -1

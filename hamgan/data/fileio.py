"""System calls on open files: whole reads and writes at a position, checksums, locks, and flushing a folder.

`crc32` is isal's where that is installed, which is several times as fast, and zlib's else: the same numbers.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

try:
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

_PIECE = 2**18  # bytes that are checked at once: they are then still in the processor's cache
_SYNC_FILE_RANGE_WRITE = 2  # of linux/fs.h


def lock(fd: int, operation: int, wait_s: float = 0.0) -> bool:
    """Take a lock on an open file; True if taken or if the file system has no locks."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                return True
            raise


def read_all(fd: int, size: int, position: int) -> bytes:
    """Read bytes at a position; fewer come only at the end of the file."""
    pieces = []
    while size > 0 and (piece := os.pread(fd, size, position)):
        pieces.append(piece)
        size -= len(piece)
        position += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def crc32_at(fd: int, size: int, position: int) -> int:
    """CRC32 of the bytes at a position, or of those up to the end of the file; in little memory."""
    buffer = memoryview(bytearray(min(size, _PIECE)))
    crc = 0
    while size > 0 and (count := os.preadv(fd, [buffer[:size]], position)):
        crc = crc32(buffer[:count], crc)
        size -= count
        position += count
    return crc


def write_all(fd: int, data: bytes | memoryview, position: int) -> None:
    """Write all bytes at a position.

    Raises:
        OSError: If the disk is full or fails.
    """
    view = memoryview(data)
    while len(view):
        written = os.pwrite(fd, view, position)
        view = view[written:]
        position += written


def start_writing(fd: int, position: int, size: int) -> None:
    """Have the system begin to write bytes to the disk, so that a later flush has less to do; only Linux can."""
    function = _sync_file_range()
    if function is not None:  # an error comes up again in the flush
        function(fd, position, size, _SYNC_FILE_RANGE_WRITE)


@lru_cache(maxsize=1)
def _sync_file_range() -> Callable[..., int] | None:
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that a rename in it survives a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def naming(path: Path, hint: str = "") -> Iterator[None]:
    """Have the errors of system calls on open files, which know no name, name a file."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(f"{path}: {error.strerror}{hint}") from None

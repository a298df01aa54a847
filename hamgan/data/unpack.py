"""Temporary plain copies of compressed files, for reading at any offset; kept until the build is done."""

import bz2
import gzip
import lzma
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

_OPENERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}


def is_compressed(path: Path) -> bool:
    """Say whether a file is compressed by gzip, bzip2 or xz."""
    return _opener(path) is not None


def _opener(path: Path) -> Callable[[Path], Any] | None:
    with open(path, "rb") as file:
        start = file.read(6)
    return next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)


def open_plain(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed if it is compressed."""
    opener = _opener(path)
    return opener(path) if opener is not None else open(path, "rb")


def unpacked_copy(path: Path, scratch: Path, write: Callable[[IO[bytes]], None] | None = None) -> Path:
    """Make a plain copy of a compressed file, or find the one of an earlier, killed build.

    Args:
        path: The compressed file.
        scratch: Prefix of the copy's name.
        write: Writes the copy's content; None decompresses the whole file.

    Returns:
        The copy; `remove_copies` deletes it.

    Raises:
        ValueError: If the file is damaged or truncated.
        OSError: If the disk is full.
    """
    state = path.stat()
    copy = scratch.with_name(f"{scratch.name}.partial.unpacked-{state.st_size}-{state.st_mtime_ns}")
    if copy.exists():
        return copy
    remove_copies(scratch)
    temporary = copy.with_name(copy.name + ".tmp")
    print(f"unpacking {path.name} beside the output")
    try:
        with open(temporary, "wb") as target:
            if write is not None:
                write(target)
            else:
                with open_plain(path) as source:
                    shutil.copyfileobj(source, target, 4 * 2**20)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        temporary.unlink()
        raise ValueError(f"{path}: damaged or truncated ({error})") from None
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path}: cannot be unpacked beside the output: {error.strerror or error}") from None
    os.replace(temporary, copy)
    return copy


def remove_copies(scratch: Path) -> None:
    """Delete the copies made with this prefix."""
    for copy in scratch.parent.glob(f"{_escape(scratch.name)}.partial.unpacked-*"):
        copy.unlink(missing_ok=True)


def _escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)

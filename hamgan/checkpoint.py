"""Atomic, checksummed saves and safe loads of anything made of tensors and plain values; knows no network.

A file is what `torch.save` writes, followed by a footer with the SHA-256 of all before it (torch itself does not notice a
flipped byte). `torch.load` still reads it. Writing goes to a temporary file in the same folder, which is flushed to the disk
and then renamed: a kill at any moment leaves the old file or the new one, never a torn one.

torch is imported by what needs it, so that commands without a tensor can write as safely and still start at once.
"""

import contextlib
import hashlib
import os
import pickle
import re
import reprlib
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

FOOTER = b"\nhamgan-sha256:"
FOOTER_LENGTH = len(FOOTER) + 64
CHUNK = 1 << 20


class DamagedFileError(ValueError):
    """A file whose bytes are not those that were written."""


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place of `path` in one step.

    Raises:
        OSError: If the folder cannot be written or the disk is full; `path` is then what it was.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say what it had no room for
        raise
    _sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writes that were killed. No other process may be writing there."""
    for path in folder.glob(".*.partial"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flush a rename to the disk; some file systems cannot, and then the rename is as durable as they make it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(path: Path, state: dict[str, Any]) -> None:
    """Save a nested dict of tensors and plain values, atomically, with its checksum.

    Args:
        path: Where to; replaced in one step.
        state: What `torch.load(weights_only=True)` can read back.

    Raises:
        OSError: If it cannot be written; `path` is then what it was.
    """
    import torch

    def write(file: IO[bytes]) -> None:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch hides what the disk has said behind an error of its own
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        file.flush()
        file.seek(0)
        digest = _sha256(file, os.fstat(file.fileno()).st_size)
        file.seek(0, os.SEEK_END)
        file.write(FOOTER + digest)

    write_atomically(path, write)


def to_host(state: Any) -> Any:
    """Copy a nested dict or list of tensors and plain values into the host's memory, so that it can be saved later."""
    import torch

    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: to_host(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(to_host(value) for value in state)
    return state


def load(path: Path) -> dict[str, Any]:
    """Load what `save` wrote, onto the CPU, after checking the checksum; runs no code that the file may hold.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFileError: If the file is truncated, altered or not one of ours.
    """
    verify(path)
    return load_tensors(path)


def verify(path: Path) -> None:
    """Check a file's checksum; errors as in `load`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - FOOTER_LENGTH, 0))
        footer = file.read()
        if not footer.startswith(FOOTER):
            raise DamagedFileError(f"{path}: truncated or not a hamgan checkpoint (its checksum is missing)")
        file.seek(0)
        digest = _sha256(file, size - FOOTER_LENGTH)
    if digest != footer[len(FOOTER) :]:
        raise DamagedFileError(f"{path}: damaged: its bytes do not match its checksum")


def _sha256(file: IO[bytes], length: int) -> bytes:
    """Return the hexadecimal SHA-256 of the next `length` bytes."""
    digest = hashlib.sha256()
    while length > 0 and (chunk := file.read(min(CHUNK, length))):
        digest.update(chunk)
        length -= len(chunk)
    return digest.hexdigest().encode()


def _refuse_inflation(path: Path) -> None:
    """Refuse an archive that takes more memory than its size: torch stores its tensors, and reads deflated ones all the same.

    Raises:
        DamagedFileError: If entries are compressed, or lie over one another.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OverflowError):
        return  # torch's older format, or damaged
    except OSError as error:
        raise _nameless(path, error) from None
    size = path.stat().st_size
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > size:
        raise DamagedFileError(f"{path}: refused: its entries are larger than the file")


def _nameless(path: Path, error: OSError) -> OSError | DamagedFileError:
    """Return an error that names the file: a place outside it, to which a damaged file points, gives one that names none."""
    return error if error.filename is not None else DamagedFileError(f"{path}: damaged ({error})")


def load_tensors(path: Path) -> dict[str, Any]:
    """Load any torch file of tensors and plain values, onto the CPU, without running code from it.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFileError: If it is not a torch file, is damaged, or holds more than tensors and plain values.
    """
    import torch

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    _refuse_inflation(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = re.sub(r"\s+", " ", str(error)).split(". ")[0][:200]
        raise DamagedFileError(f"{path}: refused: not a file of plain tensors ({reason})") from None
    except (
        RuntimeError,
        EOFError,
        KeyError,
        ValueError,
        zipfile.BadZipFile,
        AttributeError,
        TypeError,
        IndexError,
        AssertionError,
        OverflowError,
        MemoryError,
        RecursionError,
        struct.error,
    ):
        raise DamagedFileError(f"{path}: damaged or not a torch file") from None
    except OSError as error:
        raise _nameless(path, error) from None
    if not isinstance(loaded, dict):
        raise DamagedFileError(f"{path}: holds a {type(loaded).__name__}; a dict of tensors is expected")
    return loaded


def check_tensors(where: str, ours: "dict[str, Tensor]", theirs: "dict[str, Tensor]") -> None:
    """Check that a mapping holds tensors of the right names, shapes and dtypes, and nothing else.

    Args:
        where: What the mapping is in the checkpoint.
        ours: What is needed.
        theirs: What was read.

    Raises:
        ValueError: If a tensor is missing, surplus or another.
    """
    if ours.keys() != theirs.keys():
        key = min(map(str, ours.keys() ^ theirs.keys()))
        raise ValueError(f"the checkpoint's {where} has not the tensors of this network: {reprlib.repr(key)}")
    for name, tensor in ours.items():
        other = theirs[name]
        kinds = [(t.shape, t.dtype, t.layout, t.is_meta) for t in (tensor, other)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"the checkpoint's {where}.{name} is {other.dtype} {tuple(other.shape)}; this network needs "
                f"{tensor.dtype} {tuple(tensor.shape)}"
            )


@contextlib.contextmanager
def refusing_damage() -> Iterator[None]:
    """Say in one line that a state is not what was saved, whatever fails while it is read.

    Raises:
        ValueError: If an entry is missing or of another kind.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        line = " ".join(str(error).split())[:200]
        raise ValueError(f"the checkpoint's state is damaged ({type(error).__name__}: {line})") from None

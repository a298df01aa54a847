"""Read and write `.npz` files: atomically, uncompressed, never a pickle, and one clear line when one is damaged."""

import json
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hamgan.checkpoint import write_atomically

META_KEY = "hamgan_meta"


def write_npz(path: Path, arrays: Mapping[str, NDArray[np.generic]], meta: Mapping[str, Any] | None = None) -> None:
    """Write arrays, and metadata as JSON in a 0-d string array, in one step.

    Args:
        path: Where to; parents are made.
        arrays: Names to arrays.
        meta: JSON-able values, kept under "hamgan_meta".

    Raises:
        OSError: If it cannot be written.
    """
    content = dict(arrays)
    if meta is not None:
        content[META_KEY] = np.array(json.dumps(meta))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **content))


def read_npz(path: Path, keys: Iterable[str]) -> tuple[dict[str, NDArray[Any]], dict[str, Any] | None]:
    """Read some arrays, and the metadata if there are any.

    Args:
        path: The file.
        keys: Names that must be there.

    Returns:
        Names to arrays; the metadata or None.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, holds pickled objects, or lacks a name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    _check_kind(path)
    with _damage_named(path), np.load(path, allow_pickle=False) as archive:
        held = archive.files
        missing = [key for key in keys if key not in held]
        arrays = {} if missing else {key: archive[key] for key in keys}
        text = str(archive[META_KEY]) if META_KEY in held and not missing else None
    if missing:
        raise ValueError(f"{path}: no array {missing[0]!r}; it holds {', '.join(held[:9]) or 'nothing'}")
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy hands out bytes where a member is no array
            raise ValueError(f"{path}: damaged, {key} is no array")
    return arrays, None if text is None else _parse(path, text)


def list_npz(path: Path) -> list[str]:
    """Return the names of the arrays in an archive.

    Raises:
        ValueError: If it is damaged or no archive.
    """
    with _damage_named(path), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def _check_kind(path: Path) -> None:
    # numpy takes whatever it does not know for a pickle, and says so.
    with path.open("rb") as file:
        start = file.read(6)
    if start == b"\x93NUMPY":
        raise ValueError(f"{path}: a single array; expected an .npz archive")
    if start[:1] == b"\x80":
        raise ValueError(f"{path}: refused: it holds pickled objects, which can run code when read")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: damaged or not an .npz archive")


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # zip, its four decompressors, the header's parser and numpy raise a dozen kinds
        if "pickle" in str(error):
            raise ValueError(f"{path}: refused: it holds pickled objects, which can run code when read") from None
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path}: damaged or not an .npz archive ({reason})") from None


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged metadata ({error})") from None
    if not isinstance(meta, dict):
        raise ValueError(f"{path}: damaged metadata (a {type(meta).__name__})")
    return meta


def map_array(path: Path, key: str) -> NDArray[Any]:
    """Map one array of an uncompressed archive into memory, so that a part of it can be read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, compressed or lacks the name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    _check_kind(path)
    with _damage_named(path), zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entries = {entry.filename: entry for entry in archive.infolist()}
        entry = entries.get(f"{key}.npy")
        if entry is None:
            raise ValueError(f"no array {key!r}")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{key} is compressed")
        # The local header's own name and extra field, whose length may differ from the directory's.
        file.seek(entry.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
        start = entry.header_offset + 30 + int(lengths.sum())
        file.seek(start)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject or fortran:
            raise ValueError(f"{key} holds {dtype}, expected plain rows")
        if file.tell() + math.prod(shape) * dtype.itemsize != start + entry.file_size:
            raise ValueError(f"{key} of shape {shape} does not fill its {entry.file_size} bytes")
        return np.memmap(path, dtype, "r", file.tell(), shape)


def write_rows(
    path: Path,
    blocks: Mapping[str, Iterable[NDArray[Any]]],
    shapes: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    meta: Mapping[str, Any],
) -> None:
    """Write an archive whose arrays come in blocks of rows, holding one block at a time.

    Args:
        path: Where to, in one step.
        blocks: Names to consecutive blocks of rows.
        shapes: Names to shape and dtype of the whole.
        meta: As in `write_npz`.

    Raises:
        OSError: If it cannot be written.
    """

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for key, rows in blocks.items():
                shape, dtype = shapes[key]
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                with archive.open(f"{key}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array_header_1_0(entry, header)
                    for block in rows:
                        entry.write(np.ascontiguousarray(block, dtype).tobytes())
            with archive.open(f"{META_KEY}.npy", "w") as entry:
                np.lib.format.write_array(entry, np.array(json.dumps(meta)), allow_pickle=False)

    write_atomically(path, write)

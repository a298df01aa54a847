"""Read MATLAB 5 files, as SVHN and ImageNet's class list are: numbers, text and structs; never objects or code.

Large arrays are handed over as a stream, so that SVHN's gigabytes need not fit into memory.

Source: MathWorks, "MAT-File Format", level 5.
"""

import contextlib
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMERIC_CLASSES = range(6, 16)
_TYPES = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
    16: "u1",
    17: "u2",
}
_CHUNK = 2**20
_LARGEST = 2**26  # bytes of an array that is read into memory: a small compressed file can hold gigabytes
_MOST_CHILDREN = 10**6


class _Stream(Protocol):
    def read(self, count: int, /) -> bytes: ...


class _Inflated:
    """Reads a zlib stream of known length inside a file."""

    def __init__(self, file: IO[bytes], length: int) -> None:
        self._file, self._left = file, length
        self._inflate = zlib.decompressobj()
        self._buffer = bytearray()

    def read(self, count: int, /) -> bytes:
        while len(self._buffer) < count and not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._file.read(min(_CHUNK, self._left))
            if not packed:
                break
            if not self._inflate.unconsumed_tail:
                self._left -= len(packed)
            self._buffer += self._inflate.decompress(packed, _CHUNK)
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, struct.error, zlib.error, IndexError, RecursionError) as error:
        raise ValueError(f"{path}: damaged or truncated ({error})") from None


class Variable:
    """One variable of a file.

    Attributes:
        name: Its name.
        shape: Its dimensions.
        kind: Its class: 1 cell, 2 struct, 4 text, 6..15 numbers.
    """

    def __init__(self, stream: _Stream, order: str, path: Path) -> None:
        self._stream, self._order, self._path = stream, order, path
        flags = self._element()
        self.kind = int(flags[0]) & 0xFF
        self.shape = tuple(int(v) for v in self._element())
        self.name = self._element().tobytes().decode("latin1")

    def _tag(self) -> tuple[int, int, bytes]:
        """Read an element's (type, bytes, data if it is so small that it lies in the tag)."""
        raw = _exactly(self._stream, 8)
        kind, length = struct.unpack(self._order + "II", raw)
        if kind >> 16:
            return kind & 0xFFFF, kind >> 16, raw[4:]
        return kind, length, b""

    def _element(self) -> NDArray[Any]:
        kind, length, data = self._tag()
        if length > _LARGEST:
            raise ValueError(f"an element of {length} bytes")
        if not data:
            data = _exactly(self._stream, length)
            _exactly(self._stream, -length % 8)
        if kind not in _TYPES:
            raise ValueError(f"unknown element type {kind}")
        return np.frombuffer(data[:length], self._order + _TYPES[kind])

    def copy_bytes(self, target: IO[bytes]) -> None:
        """Copy an array of bytes as it lies in the file (first index fastest).

        Raises:
            ValueError: If the elements are not bytes.
        """
        with _damage_named(self._path):
            kind, length, data = self._tag()
            if kind != 2:
                raise ValueError(f"variable {self.name} is not uint8")
            target.write(data[:length])
            for start in range(0, length if not data else 0, _CHUNK):
                target.write(_exactly(self._stream, min(_CHUNK, length - start)))

    def value(self) -> Any:
        """Return an array, a text, a list (cell) or a list of dicts (struct).

        Raises:
            ValueError: If the file is damaged or the variable of a class that is not read.
        """
        with _damage_named(self._path):
            return self._value()

    def _value(self) -> Any:
        count = math.prod(self.shape)
        if count < 0 or (self.kind in (_CELL, _STRUCT) and count > _MOST_CHILDREN):
            raise ValueError(f"variable {self.name or 'inside'} has {count} elements")
        if self.kind == _CHAR:
            return "".join(chr(v) for v in self._element())
        if self.kind == _CELL:
            return [self._child() for _ in range(count)]
        if self.kind == _STRUCT:
            width = int(self._element()[0])
            names = self._element().tobytes()
            fields = [names[i : i + width].split(b"\0")[0].decode("latin1") for i in range(0, len(names), width)]
            if not fields:
                raise ValueError(f"struct {self.name or 'inside'} has no fields")
            return [{field: self._child() for field in fields} for _ in range(count)]
        if self.kind in _NUMERIC_CLASSES:
            return self._element().reshape(self.shape, order="F") if count else np.empty(self.shape)
        raise ValueError(f"variable {self.name or 'inside'} is of an unknown class {self.kind}")

    def _child(self) -> Any:
        kind, length, _ = self._tag()
        if kind != _MATRIX:
            raise ValueError(f"unknown element type {kind}")
        return Variable(self._stream, self._order, self._path)._value() if length else np.empty((0, 0))


def _exactly(stream: _Stream, count: int) -> bytes:
    data = stream.read(count) if count else b""
    if len(data) < count:
        raise ValueError("it ends too early")
    return data


def variables(path: Path) -> Iterator[Variable]:
    """Yield a file's variables in order; use each before asking for the next.

    Raises:
        ValueError: If the file is damaged, truncated or not of MATLAB's level 5.
    """
    with open(path, "rb") as file:
        header = file.read(128)
        if len(header) < 128 or header[126:128] not in (b"IM", b"MI"):
            raise ValueError(f"{path}: not a MATLAB 5 file")
        order = "<" if header[126:128] == b"IM" else ">"
        while tag := file.read(8):
            with _damage_named(path):
                kind, length = struct.unpack(order + "II", tag)
                start = file.tell()
                if kind == _COMPRESSED:
                    stream: _Stream = _Inflated(file, length)
                    kind = struct.unpack(order + "II", _exactly(stream, 8))[0]
                else:
                    stream = file
                if kind != _MATRIX:
                    raise ValueError(f"unknown element type {kind}")
                variable = Variable(stream, order, path)
            yield variable
            file.seek(start + length)

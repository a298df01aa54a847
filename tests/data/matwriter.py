"""Writes the MATLAB 5 files that the tests read: numbers, text, structs."""

import struct
import zlib
from typing import Any

import numpy as np

_TYPE_OF = {"uint8": 2, "float64": 9, "int32": 5}
_CLASS_OF = {"uint8": 9, "float64": 6, "int32": 12}


def element(kind: int, data: bytes) -> bytes:
    if 0 < len(data) <= 4:
        return struct.pack("<HH", kind, len(data)) + data.ljust(4, b"\0")
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        kind, shape = 4, (1, len(value))
        body = element(4, value.encode("utf-16-le"))
    elif isinstance(value, list):
        kind, shape = 2, (len(value), 1)
        fields = list(value[0])
        body = element(5, struct.pack("<i", 16)) + element(1, b"".join(f.encode().ljust(16, b"\0") for f in fields))
        body += b"".join(matrix("", entry[field]) for entry in value for field in fields)
    else:
        value = np.atleast_2d(value)
        kind, shape = _CLASS_OF[str(value.dtype)], value.shape
        body = element(_TYPE_OF[str(value.dtype)], value.tobytes(order="F"))
    head = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack(f"<{len(shape)}i", *shape))
    content = head + element(1, name.encode()) + body
    return struct.pack("<II", 14, len(content)) + content


def mat_file(variables: dict[str, Any], *, compressed: bool) -> bytes:
    content = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    for name, value in variables.items():
        raw = matrix(name, value)
        packed = zlib.compress(raw)
        content += struct.pack("<II", 15, len(packed)) + packed if compressed else raw
    return content

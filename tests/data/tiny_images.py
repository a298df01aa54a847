"""Small images made on the spot."""

import io
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def encode(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """Encode pixels, (H, W) or (H, W, C) uint8, as an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth random picture, (H, W, 3), as a photograph out of focus."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def noise(seed: int, height: int, width: int) -> np.ndarray:
    """Independent random values, (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_class_folders(root: Path, per_class: dict[str, int], size: int = 16) -> dict[str, np.ndarray]:
    """Write PNGs of noise into class folders; return the pixels by key."""
    images = {}
    for c, (name, count) in enumerate(per_class.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            key = f"{name}/{i:03d}.png"
            images[key] = noise(1000 * c + i, size, size)
            (root / key).write_bytes(encode(images[key]))
    return images


def flip_byte(path: Path, offset: int) -> None:
    """Change one byte of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def png16(values: np.ndarray) -> bytes:
    """Encode (H, W) or (H, W, 3) uint16 as a 16-bit PNG, which Pillow cannot write in colour."""
    height, width = values.shape[:2]
    rows = values.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    color = 0 if values.ndim == 2 else 2
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((16, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")

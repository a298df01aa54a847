"""Images under a folder, decoded strictly: what has no one rendering as 8-bit RGB is an error that names the file."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from hamgan.metrics.sources import Batch, ImageSource, IntArray

EXTENSIONS = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}


class FolderImages(ImageSource):
    """The images under a folder, found recursively; the first-level subfolders, if all lie in such, are classes.

    Args:
        path: The folder.
        resolution: Cut to the central square and resize to this side, pixels; None takes the images as they are,
            which then must be of one size.
        resize_filter: A key of FILTERS (all antialiased, on uint8).
        num_threads: Files decoded at once.

    Raises:
        ValueError: If there is no such folder, or it holds no images.
    """

    reads_ahead = True

    def __init__(
        self,
        path: str | Path,
        *,
        resolution: int | None = None,
        resize_filter: str = "lanczos",
        num_threads: int | None = None,
    ) -> None:
        self.path = Path(path)
        if resize_filter not in FILTERS:
            raise ValueError(f"resize_filter = {resize_filter!r}: expected one of {', '.join(FILTERS)}")
        if resolution is not None and resolution < 1:
            raise ValueError(f"resolution = {resolution}: expected at least 1 pixel")
        self.files = find_images(self.path)
        self.num_images = len(self.files)
        self.resolution = resolution
        self.resize_filter = resize_filter
        self.class_names, self._labels = _classes(self.path, self.files)
        self.fingerprint = self._digest()
        self._first: tuple[int, ...] | None = None
        self._pool = ThreadPoolExecutor(num_threads or min(8, os.cpu_count() or 1))

    def _digest(self) -> str:
        # Over names and sizes of the files, and how they are cut and resized: contents would take as long as a pass.
        digest = hashlib.sha256(f"{self.resolution} {self.resize_filter if self.resolution else None}\n".encode())
        for file in self.files:
            digest.update(f"{file.relative_to(self.path).as_posix()} {file.stat().st_size}\n".encode())
        return digest.hexdigest()

    def __call__(self, indices: IntArray) -> Batch:
        """Decode a selection.

        Raises:
            ValueError: If a file is unreadable or of a kind that has no one rendering as 8-bit RGB, or sizes differ.
        """
        files = [self.files[i] for i in indices]
        self._first = self._first or self._read(self.files[0]).shape
        pixels = list(self._pool.map(self._read, files))
        for file, image in zip(files, pixels):
            if image.shape != self._first:
                size, first = (f"{shape[1]}x{shape[0]}" for shape in (image.shape, self._first))
                raise ValueError(f"{file}: {size}, but {self.files[0]} is {first}; give a resolution to cut and resize")
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        return Batch(images, None if self._labels is None else self._labels[indices])

    def _read(self, file: Path) -> NDArray[np.uint8]:
        image = read_rgb(file)
        if self.resolution is not None:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = (left, top, left + side, top + side)
            image = image.resize((self.resolution, self.resolution), FILTERS[self.resize_filter], square)
        return np.array(image)


def find_images(folder: Path) -> list[Path]:
    """List the image files under a folder, recursively, sorted by path; hidden ones are left out.

    Raises:
        ValueError: If there is no such folder, or it holds no images.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    files = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(root, n) for n in names if Path(n).suffix.lower() in EXTENSIONS and not n.startswith(".")]
    if not files:
        raise ValueError(f"{folder}: no images (looked for {', '.join(sorted(EXTENSIONS))})")
    return sorted(files, key=lambda file: file.relative_to(folder).as_posix())


def _classes(folder: Path, files: Sequence[Path]) -> tuple[tuple[str, ...] | None, IntArray | None]:
    parts = [file.relative_to(folder).parts for file in files]
    if any(len(part) < 2 for part in parts):
        return None, None
    names = sorted({part[0] for part in parts})
    number = {name: i for i, name in enumerate(names)}
    return tuple(names), np.array([number[part[0]] for part in parts])


def read_rgb(file: Path) -> Image.Image:
    """Read a file as 8-bit RGB; grey, palette and CMYK are converted.

    Raises:
        ValueError: If it is unreadable, has more than 8 bits a channel, or is transparent somewhere: those have no one
            rendering, and a silent choice would move the numbers.
    """
    try:
        with Image.open(file) as image:
            refusal = _refusal(image)
            rendering = image.convert("RGB") if refusal is None else None
    except Exception as error:  # Pillow's readers raise a dozen kinds over a damaged file
        raise ValueError(f"{file}: unreadable image ({_reason(error)})") from None
    if rendering is None:
        raise ValueError(f"{file}: {refusal}")
    return rendering


def _refusal(image: ImageFile.ImageFile) -> str | None:
    raw = image.tile[0].args if image.tile else ""
    deep = "16" in str(raw[0] if isinstance(raw, tuple) else raw) or image.mode in ("I", "F")
    if deep or image.mode.startswith("I;16"):
        return "more than 8 bits a channel; convert it to 8 bits first"
    image.load()
    if "A" in image.mode or "transparency" in image.info:
        lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
        if lowest != 255:
            return "transparent pixels; composite it on a background first"
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "of no kind that Pillow knows"  # its own text repeats the path
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__

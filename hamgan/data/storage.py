"""Where a training file's pixels lie, and how a batch is gathered from there."""

import abc
import mmap
import os
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from hamgan.data import format as file_format
from hamgan.data.format import Header

Pixels = NDArray[np.uint8]


class Storage(abc.ABC):
    """The pixels of one open file."""

    @abc.abstractmethod
    def gather(self, indices: NDArray[np.int64], out: Pixels) -> None:
        """Copy images into `out`.

        Args:
            indices: Numbers of the images, (B,), within the file.
            out: Pixels, (B, H, W, 3), C-contiguous.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Release the file."""


class Mapped(Storage):
    """Runs of images that lie as plain bytes in one or more files."""

    def __init__(self, runs: list[tuple[Path, int, int]], resolution: int, *, nchw: bool = False) -> None:
        """Map files.

        Args:
            runs: (file, byte offset, number of images) of each run, in the order of the images.
            resolution: Side of the images, pixels.
            nchw: True if the images lie as (3, H, W).

        Raises:
            ValueError: If a file is shorter than its runs.
        """
        self._resolution = resolution
        self._nchw = nchw
        image_bytes = resolution * resolution * 3
        maps: dict[Path, NDArray[np.uint8]] = {}
        self._runs: list[NDArray[np.uint8]] = []
        for path, offset, count in runs:
            if path not in maps:
                maps[path] = _map(path)
            end = offset + count * image_bytes
            if end > len(maps[path]):
                raise ValueError(
                    f"{path}: truncated: pixels end at byte {end}, the file at {len(maps[path])}"
                )
            self._runs.append(maps[path][offset:end].reshape(count, image_bytes))
        self._ends = np.cumsum([count for _, _, count in runs])

    def gather(self, indices: NDArray[np.int64], out: Pixels) -> None:
        """Copy images into `out`; releases the GIL while copying."""
        rows = (
            np.empty((len(indices), out[:1].size), np.uint8) if self._nchw else out.reshape(len(indices), -1)
        )
        if len(self._runs) == 1:
            # mode "clip" writes straight into `out`; "raise" would go through a buffer.
            np.take(self._runs[0], indices, axis=0, out=rows, mode="clip")
        else:
            run_of = np.searchsorted(self._ends, indices, side="right")
            for run in np.unique(run_of):
                places = np.flatnonzero(run_of == run)
                pixels = self._runs[run]
                rows[places] = pixels[indices[places] - (self._ends[run] - len(pixels))]
        if self._nchw:
            side = self._resolution
            np.copyto(out, rows.reshape(-1, 3, side, side).transpose(0, 2, 3, 1))

    def close(self) -> None:
        """Drop the maps."""
        self._runs = []


def _map(path: Path) -> NDArray[np.uint8]:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        return np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), np.uint8)


class Chunked(Storage):
    """Images that only h5py can read: compressed, or with chunks that were never written."""

    def __init__(self, path: Path) -> None:
        self._file = file_format.open_hdf5(path)
        self._images: h5py.Dataset = self._file["imgs"]

    def gather(self, indices: NDArray[np.int64], out: Pixels) -> None:
        """Copy images into `out`, each chunk decompressed once."""
        unique, inverse = np.unique(indices, return_inverse=True)
        size = self._images.chunks[0] if self._images.chunks else len(self._images)
        chunk_of = unique // size
        for chunk in np.unique(chunk_of):
            pixels = self._images[int(chunk) * size : (int(chunk) + 1) * size]
            places = np.flatnonzero(chunk_of[inverse] == chunk)
            out[places] = pixels[indices[places] - int(chunk) * size].transpose(0, 2, 3, 1)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_storage(path: Path, header: Header | None, num_images: int, resolution: int) -> Storage:
    """Find out where the pixels are.

    Raises:
        FileNotFoundError: If a part of a joined file is gone.
        ValueError: If the file or a part is truncated or is not what the header says.
    """
    if header is None:
        with file_format.open_hdf5(path) as file:
            runs = _foreign_runs(path, file["imgs"], num_images)
        return Chunked(path) if runs is None else Mapped(runs, resolution, nchw=True)
    parts = [(path.parent / name, count) for name, count in header.parts] or [(path, num_images)]
    runs = []
    for part, count in parts:
        if not part.exists():
            raise FileNotFoundError(f"{path}: its part {part} is gone")
        with file_format.open_hdf5(part) as file:
            images = file.get("images")
            offset = images.id.get_offset() if images is not None else None
            if images is None or offset is None or images.shape != (count, resolution, resolution, 3):
                raise ValueError(
                    f"{part}: does not hold {count} images of {resolution}x{resolution} as plain bytes"
                )
        runs.append((part, int(offset), count))
    return Mapped(runs, resolution)


def _foreign_runs(path: Path, images: h5py.Dataset, num_images: int) -> list[tuple[Path, int, int]] | None:
    """Return (file, byte offset, count) of each run of images, or None if they are not plain bytes."""
    properties = images.id.get_create_plist()
    if properties.get_nfilters():
        return None
    if images.chunks is None:
        offset = images.id.get_offset()
        return None if offset is None else [(path, int(offset), num_images)]
    size = images.chunks[0]
    count = -(-num_images // size)
    if images.chunks[1:] != images.shape[1:] or images.id.get_num_chunks() != count:
        return None
    runs: list[tuple[Path, int, int] | None] = [None] * count
    for number in range(count):
        info = images.id.get_chunk_info(number)
        first = info.chunk_offset[0]
        runs[first // size] = (path, int(info.byte_offset), min(size, num_images - first))
    return [run for run in runs if run is not None]

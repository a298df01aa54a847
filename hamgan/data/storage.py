"""Where a training file's pixels lie, and how a batch is gathered from there."""

import abc
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from hamgan.data.fileio import read_all
from hamgan.data.format import Header, open_hdf5

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


class Run(NamedTuple):
    """Consecutive images that lie as plain bytes in one file."""

    path: Path
    offset: int  # of the first byte
    num_images: int


class Mapped(Storage):
    """Images in runs, memory-mapped."""

    def __init__(self, runs: list[Run], resolution: int, *, nchw: bool = False) -> None:
        """Map the files.

        Args:
            runs: Where the images lie, in their order.
            resolution: Side of the images, pixels.
            nchw: True if they lie as (3, H, W).
        """
        self._resolution = resolution
        self._nchw = nchw
        image_bytes = resolution * resolution * 3
        maps = {path: _map(path) for path in {run.path for run in runs}}
        self._runs = [
            maps[run.path][run.offset : run.offset + run.num_images * image_bytes].reshape(run.num_images, image_bytes)
            for run in runs
        ]
        self._ends = np.cumsum([run.num_images for run in runs])

    def gather(self, indices: NDArray[np.int64], out: Pixels) -> None:
        """Copy images into `out`; releases the GIL while copying."""
        rows = (
            np.empty((len(indices), out.shape[1] ** 2 * 3), np.uint8)
            if self._nchw
            else out.reshape(len(indices), out.shape[1] ** 2 * 3)
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
        self._file = open_hdf5(path)
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


class Sequential:
    """Reads runs from front to back by system calls: a bad sector is an OSError, not a dead process."""

    def __init__(self, runs: list[Run], image_bytes: int) -> None:
        self._runs, self._image_bytes = runs, image_bytes
        self._fd, self._path = -1, Path()

    def blocks(self, block_images: int) -> Iterator[tuple[int, bytes]]:
        """Yield (number of images, their bytes) of every block; the last may be smaller.

        Raises:
            OSError: If the disk fails or a file has become shorter.
        """
        pieces, held = [], 0
        for run in self._runs:
            start = 0
            while start < run.num_images:
                count = min(block_images - held, run.num_images - start)
                pieces.append(self._read(run, start, count))
                start += count
                held += count
                if held == block_images:
                    yield held, pieces[0] if len(pieces) == 1 else b"".join(pieces)
                    pieces, held = [], 0
        if held:
            yield held, b"".join(pieces)

    def _read(self, run: Run, start: int, count: int) -> bytes:
        if run.path != self._path:
            self.close()
            self._fd, self._path = os.open(run.path, os.O_RDONLY), run.path
        size = count * self._image_bytes
        data = read_all(self._fd, size, run.offset + start * self._image_bytes)
        if len(data) < size:
            raise OSError(f"{run.path}: ends inside image {start + len(data) // self._image_bytes}")
        return data

    def close(self) -> None:
        """Close the open file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def open_storage(path: Path, header: Header | None, num_images: int, resolution: int) -> Storage:
    """Open the pixels of a training file.

    Raises:
        FileNotFoundError: If a part of a joined file is gone.
        ValueError: If the file or a part is truncated or is not what the header says.
    """
    runs = find_runs(path, header, num_images, resolution)
    return Chunked(path) if runs is None else Mapped(runs, resolution, nchw=header is None)


def find_runs(path: Path, header: Header | None, num_images: int, resolution: int) -> list[Run] | None:
    """Find where the pixels lie as plain bytes; None if h5py has to read them.

    Raises:
        FileNotFoundError: If a part of a joined file is gone.
        ValueError: If the file or a part is truncated or is not what the header says.
    """
    runs: list[Run] | None = []
    if header is None:
        with open_hdf5(path) as file:
            runs = _foreign_runs(path, file["imgs"], num_images)
    else:
        for part, count in [(path.parent / name, count) for name, count in header.parts] or [(path, num_images)]:
            runs.append(_own_run(path, part, count, resolution))  # type: ignore[union-attr]
    for run in runs or ():
        end, size = run.offset + run.num_images * resolution * resolution * 3, run.path.stat().st_size
        if end > size:
            raise ValueError(f"{run.path}: truncated: its pixels end at byte {end}, the file at {size}")
    return runs


def _own_run(path: Path, part: Path, count: int, resolution: int) -> Run:
    if not part.exists():
        raise FileNotFoundError(f"{path}: its part {part} is gone")
    with open_hdf5(part) as file:
        images = file.get("images")
        offset = images.id.get_offset() if isinstance(images, h5py.Dataset) and not images.is_virtual else None
        if offset is None or images.shape != (count, resolution, resolution, 3):
            raise ValueError(f"{part}: does not hold {count} images of {resolution}x{resolution} as plain bytes")
    return Run(part, int(offset), count)


def _foreign_runs(path: Path, images: h5py.Dataset, num_images: int) -> list[Run] | None:
    """Return the runs of images, or None if they are not plain bytes."""
    properties = images.id.get_create_plist()
    if properties.get_nfilters():
        return None
    if images.chunks is None:
        offset = images.id.get_offset()
        return None if offset is None else [Run(path, int(offset), num_images)]
    size = images.chunks[0]
    count = -(-num_images // size)
    if images.chunks[1:] != images.shape[1:] or images.id.get_num_chunks() != count:
        return None
    runs: list[Run | None] = [None] * count
    for number in range(count):
        info = images.id.get_chunk_info(number)
        first = info.chunk_offset[0]
        runs[first // size] = Run(path, int(info.byte_offset), min(size, num_images - first))
    return [run for run in runs if run is not None]

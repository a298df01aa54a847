"""Read training files: ours, and as they are those of BigGAN-PyTorch and StudioGAN."""

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np
from numpy.typing import NDArray

from hamgan.data import format as file_format
from hamgan.data.format import Header
from hamgan.data.storage import Storage, open_storage

Pixels = NDArray[np.uint8]

# Of foreign files, whose numbers nothing vouches for.
_LARGEST_CHUNK = 2**28  # bytes: HDF5 unpacks one as a whole
_MOST_CLASSES = 2**20


class TrainingFile:
    """A training file, open for reading.

    Where the pixels lie as plain bytes they are memory-mapped, and a batch is one gathering copy out of the page
    cache. Compressed foreign files go through h5py. Instances can be pickled and survive a fork: each process maps the
    file for itself at its first read.

    Attributes:
        path: The file.
        num_images: Number of images, N.
        resolution: Side of the images, pixels.
        num_classes: Number of classes.
        class_names: Names in the order of the class index.
        labels: Class indices, int64 (N,).
        fingerprint: sha256 that names the content: equal for equal images, labels and class names.
        header: The rest of what the file says; None in a foreign file.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a file.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is damaged, truncated, of a newer version or not a training file.
        """
        self.path = Path(path)
        self.header: Header | None = None
        with file_format.open_hdf5(self.path) as file:
            try:
                names, ours = list(file), "format" in file.attrs
            except RuntimeError as error:
                raise ValueError(f"{self.path}: damaged ({error})") from None
            if ours:
                self._describe(file_format.read_header(file, self.path))
            elif "imgs" in names and "labels" in names:
                try:
                    self._describe_foreign(file)
                except (KeyError, OSError, RuntimeError, TypeError) as error:
                    raise ValueError(f"{self.path}: damaged ({str(error).splitlines()[0]})") from None
            else:
                found = ", ".join(names) or "nothing"
                raise ValueError(f"{self.path}: not a training file (it holds {found}, not images or imgs and labels)")
        self.num_images = len(self.labels)
        self.num_classes = len(self.class_names)
        self._storage: Storage | None = None
        self._owner = -1
        self._open()

    def _describe(self, header: Header) -> None:
        self.header = header
        self.labels = header.labels
        self.resolution = header.resolution
        self.class_names = header.class_names
        digest = hashlib.sha256(repr((header.resolution, header.class_names, len(header.labels))).encode())
        digest.update(header.labels.astype("<i8").data)
        digest.update(header.block_crc32.astype("<u4").data)
        self.fingerprint = digest.hexdigest()

    def _describe_foreign(self, file: h5py.File) -> None:
        images, labels = file["imgs"], file["labels"]
        if not isinstance(images, h5py.Dataset) or not isinstance(labels, h5py.Dataset):
            raise ValueError(f"{self.path}: imgs and labels are not both arrays")
        shape = images.shape
        if images.dtype != np.uint8 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
            raise ValueError(f"{self.path}: imgs is {images.dtype} {shape}, not uint8 (N, 3, R, R)")
        if labels.shape != shape[:1] or not shape[0]:
            raise ValueError(f"{self.path}: labels has shape {labels.shape} beside {shape[0]} images")
        chunk = math.prod(images.chunks or (0,))
        if not 1 <= shape[2] <= file_format.LARGEST_SIDE or chunk > _LARGEST_CHUNK:
            raise ValueError(f"{self.path}: imgs is {shape} in chunks of {chunk} bytes: too large, or empty")
        try:
            self.labels = file_format.read_list(file, "labels", "iu").astype(np.int64)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        if self.labels.min() < 0:
            raise ValueError(f"{self.path}: label {self.labels.min()} is negative")
        if self.labels.max() >= _MOST_CLASSES:
            raise ValueError(f"{self.path}: label {self.labels.max()} is outside 0..{_MOST_CLASSES - 1}")
        self.resolution = int(shape[2])
        self.class_names = tuple(str(i) for i in range(int(self.labels.max()) + 1))
        digest = hashlib.sha256(repr((shape, os.path.getsize(self.path))).encode())
        digest.update(self.labels.astype("<i8").data)
        for index in sorted({0, shape[0] // 2, shape[0] - 1}):  # the whole would take minutes
            digest.update(images[index].data)
        self.fingerprint = digest.hexdigest()

    def _open(self) -> Storage:
        if self._storage is None or self._owner != os.getpid():
            self._storage, self._owner = (
                open_storage(self.path, self.header, self.num_images, self.resolution),
                os.getpid(),
            )
        return self._storage

    def read(self, indices: Sequence[int] | NDArray[np.int64], out: Pixels | None = None) -> Pixels:
        """Read images in the order asked, duplicates included.

        Args:
            indices: Numbers of the images, (B,), each 0..N-1.
            out: Where to put them, uint8 (B, H, W, 3) and C-contiguous; None allocates.

        Returns:
            Pixels, (B, H, W, 3).

        Raises:
            IndexError: If an index is outside 0..N-1.
            OSError: If the file has changed or fails under the reader.
        """
        wanted = np.asarray(indices, np.int64)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < self.num_images):
            raise IndexError(f"{self.path}: index outside 0..{self.num_images - 1}")
        shape = (len(wanted), self.resolution, self.resolution, 3)
        if out is None:
            out = np.empty(shape, np.uint8)
        assert out.shape == shape and out.dtype == np.uint8 and out.flags.c_contiguous
        self._open().gather(wanted, out)
        return out

    def close(self) -> None:
        """Unmap the file; a later read opens it again."""
        if self._storage is not None and self._owner == os.getpid():
            self._storage.close()
        self._storage = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_storage": None}

    def __len__(self) -> int:
        return self.num_images

    def __enter__(self) -> "TrainingFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

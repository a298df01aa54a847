"""What every source of images is: an ordered list of (key, image, label).

A `Source` lives in the process that plans the build and holds the list in a compact form. It hands out small
locators, one per image, and a `Reader` that turns a locator into the image's bytes (an encoded file) or its
pixels (a uint8 array). Readers and locators are pickled to the decoding processes; sources are not.
"""

import abc
import hashlib
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Locator = Any  # a path, or a tuple of integers; only its own reader understands it
Payload = bytes | NDArray[np.uint8]

# Up to this many bytes the fingerprint covers the images' content; above it, their names and sizes only.
CONTENT_FINGERPRINT_LIMIT = 256 * 2**20

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga", ".avif"),
)


def is_image_name(name: str) -> bool:
    """Say whether a file's name promises an image that belongs to the data (hidden files do not)."""
    base = name.rsplit("/", 1)[-1]
    return not base.startswith(".") and base.lower().endswith(IMAGE_SUFFIXES)


class Keys(Sequence[str]):
    """An append-only list of names in one buffer: about a third of the memory of a list of str."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("Q")

    def append(self, key: str) -> None:
        """Add one name."""
        self._bytes += key.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = self._ends[index - 1] if index else 0
        return self._bytes[start : self._ends[index]].decode("utf-8", "surrogateescape")


class Reader(abc.ABC):
    """Fetches images; one lives in each decoding process. Picklable; opens its files at first use."""

    @abc.abstractmethod
    def read(self, locator: Locator) -> Payload:
        """Fetch one image.

        Returns:
            The encoded file's bytes, or its pixels: uint8 (H, W) or (H, W, 3).

        Raises:
            OSError: If the bytes cannot be read.
            ValueError: If the bytes are damaged in a way that the container notices.
        """


class Source(abc.ABC):
    """An ordered list of (key, image, label).

    Attributes:
        name: The path that the user gave, for messages.
        keys: Each image's name inside the source, "/" between folders; no name twice.
        labels: Class index of each image, int64 (N,).
        sizes: Bytes of each encoded image, int64 (N,).
        class_names: Names in the order of the class index.
        notes: Lines to tell the user about what was passed over.
    """

    def __init__(self, name: str, keys: Sequence[str], labels: NDArray[np.int64], sizes: NDArray[np.int64],
                 class_names: Sequence[str], *, allow_empty: bool = False) -> None:  # fmt: skip
        self.name = name
        self.keys = keys
        self.labels = labels
        self.sizes = sizes
        self.class_names = tuple(class_names)
        self.notes: list[str] = []
        if not len(keys):
            raise ValueError(f"{name}: no image found")
        check_labels(labels, self.class_names, name, allow_empty=allow_empty)

    def __len__(self) -> int:
        return len(self.keys)

    @abc.abstractmethod
    def locator(self, index: int) -> Locator:
        """Return where image `index` is, for the reader."""

    @abc.abstractmethod
    def reader(self) -> Reader:
        """Return a reader for this source's locators."""

    def __iter__(self) -> Iterator[tuple[str, Payload, int]]:
        reader = self.reader()
        for index, key in enumerate(self.keys):
            yield key, reader.read(self.locator(index)), int(self.labels[index])

    def fingerprint(self) -> str:
        """Identify the images: sha256 over keys, labels, class names, sizes, and the content if it is small.

        Modification times are left out, so that a copy on another machine has the same fingerprint. Sources
        over `CONTENT_FINGERPRINT_LIMIT` bytes are not read through for it.
        """
        digest = hashlib.sha256()
        digest.update("\0".join(self.class_names).encode("utf-8", "surrogateescape"))
        digest.update(self.labels.astype("<i8").tobytes())
        digest.update(self.sizes.astype("<i8").tobytes())
        with_content = int(self.sizes.sum()) <= CONTENT_FINGERPRINT_LIMIT
        reader = self.reader()
        for index, key in enumerate(self.keys):
            digest.update(key.encode("utf-8", "surrogateescape") + b"\0")
            if with_content:
                try:
                    payload = reader.read(self.locator(index))
                except (OSError, ValueError):
                    payload = b"unreadable"  # the build will name it
                digest.update(payload if isinstance(payload, bytes) else np.ascontiguousarray(payload).data)
        return digest.hexdigest()


def check_labels(
    labels: NDArray[np.int64], class_names: Sequence[str], name: str, *, allow_empty: bool = False
) -> None:
    """Check that every label names a class and, unless allowed otherwise, that every class has an image.

    Raises:
        ValueError: If a label is outside 0..num_classes-1, or a class is empty.
    """
    num_classes = len(class_names)
    if labels.min() < 0 or labels.max() >= num_classes:
        wrong = int(labels[(labels < 0) | (labels >= num_classes)][0])
        raise ValueError(f"{name}: label {wrong} is outside 0..{num_classes - 1}")
    counts = np.bincount(labels, minlength=num_classes)
    if not allow_empty and not counts.all():
        empty = [class_names[int(i)] for i in np.flatnonzero(counts == 0)]
        more = f" and {len(empty) - 1} more classes have" if len(empty) > 1 else " has"
        raise ValueError(f"{name}: class {empty[0]!r}{more} no image")

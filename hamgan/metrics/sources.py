"""Where images come from: functions, arrays, readers and plain iterables, all as one callable by image number."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hamgan.metrics.extractors.base import check_images
from hamgan.metrics.storage import list_npz, read_npz

IntArray = NDArray[np.int64]
MOST_CLASSES = 1_000_000
"""A class index beyond is taken for damage: memory is reserved for each class below it."""


class Batch(NamedTuple):
    """Images and their classes.

    Attributes:
        images: uint8, (B, 3, H, W).
        labels: Class indices, (B,); None without classes.
    """

    images: Tensor
    labels: IntArray | None


class ImageSource(ABC):
    """Images by number: any process can ask for any, and asking twice gives the same.

    Attributes:
        num_images: How many there are.
        class_names: Names by class index; None without classes.
        fingerprint: Digest of the content; None if unknown.
    """

    num_images: int
    class_names: Sequence[str] | None = None
    fingerprint: str | None = None
    reads_ahead: bool = False
    """Whether a second thread may fetch a batch while the network sees the one before."""

    @abstractmethod
    def __call__(self, indices: IntArray) -> Batch:
        """Return the images of these numbers, in this order."""


class ChosenImages(ImageSource):
    """A random part of a source, in its order: the first images would be those of the first classes.

    Args:
        source: Has at least that many.
        num_images: How many to choose.
        seed: Of numpy's RandomState.
    """

    def __init__(self, source: ImageSource, num_images: int, seed: int = 2020) -> None:
        self._source = source
        self._chosen = np.sort(np.random.RandomState(seed).permutation(source.num_images)[:num_images])
        self.num_images = num_images
        self.class_names = source.class_names
        self.fingerprint = source.fingerprint
        if source.fingerprint is not None:
            self.fingerprint = hashlib.sha256(f"{source.fingerprint} {num_images} {seed}".encode()).hexdigest()
        self.reads_ahead = source.reads_ahead

    def __call__(self, indices: IntArray) -> Batch:
        """Ask the source."""
        return self._source(self._chosen[indices])


class DrawnImages(ImageSource):
    """Images that a function draws by number, such as a generator with one seed an image.

    Args:
        draw: Numbers (B,) to uint8 images (B, 3, H, W) and class indices (B,) or None.
        num_images: How many to draw.
        class_names: Names by class index.
        fingerprint: Digest of generator and settings, so that partial results of another are not taken up.
    """

    def __init__(
        self,
        draw: Callable[[IntArray], tuple[Tensor, IntArray | Tensor | None]],
        num_images: int,
        *,
        class_names: Sequence[str] | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self._draw = draw
        self.num_images = num_images
        self.class_names = class_names
        self.fingerprint = fingerprint

    def __call__(self, indices: IntArray) -> Batch:
        """Draw; errors as `as_batch`."""
        return as_batch(self._draw(indices), len(indices))


class SequentialImages(ImageSource):
    """An iterable of batches, read once from front to back by asking for consecutive numbers.

    Args:
        batches: Each uint8 (B, 3, H, W), or a pair of that and class indices (B,); B may vary.
        num_images: How many to take; more are ignored.
    """

    def __init__(self, batches: Iterable[Tensor | tuple[Tensor, IntArray | Tensor | None]], num_images: int) -> None:
        self.num_images = num_images
        self._batches = iter(batches)
        self._next = 0
        self._held: list[Batch] = []

    def __call__(self, indices: IntArray) -> Batch:
        """Return the next images.

        Raises:
            ValueError: If the iterable ends early, or the numbers are not the next ones.
        """
        count = len(indices)
        if not np.array_equal(indices, np.arange(self._next, self._next + count)):
            raise ValueError("an iterable of images can only be read once, from front to back")
        while sum(len(batch.images) for batch in self._held) < count:
            item = next(self._batches, None)
            if item is None:
                end = self._next + sum(len(batch.images) for batch in self._held)
                raise ValueError(f"the iterable ended after {end} images, expected {self.num_images}")
            pair = item if isinstance(item, tuple) else (item, None)
            self._held.append(as_batch(pair, len(pair[0])))
        taken, rest = _split(concatenate(self._held), count)
        self._held = [rest] if len(rest.images) else []
        self._next += count
        return taken


def _split(batch: Batch, count: int) -> tuple[Batch, Batch]:
    labels = batch.labels
    head = Batch(batch.images[:count], None if labels is None else labels[:count])
    return head, Batch(batch.images[count:], None if labels is None else labels[count:])


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Join batches of one size and kind.

    Raises:
        ValueError: If sizes differ, or only some have labels.
    """
    sizes = {tuple(batch.images.shape[1:]) for batch in batches}
    if len(sizes) > 1:
        raise ValueError(f"images of mixed sizes: {' and '.join(str(size) for size in sorted(sizes))}")
    labels = [batch.labels for batch in batches if batch.labels is not None]
    if labels and len(labels) < len(batches):
        raise ValueError("labels: some batches have them and some have not")
    return Batch(torch.cat([batch.images for batch in batches]), np.concatenate(labels) if labels else None)


def as_batch(pair: tuple[Tensor, IntArray | Tensor | None], count: int) -> Batch:
    """Check images and labels.

    Raises:
        ValueError: If the images are not uint8 (count, 3, H, W) or there is not one label for each.
    """
    images, labels = pair
    check_images(images)
    if len(images) != count:
        raise ValueError(f"images: got {len(images)}, expected {count}")
    if labels is None:
        return Batch(images, None)
    array = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.shape != (count,) or array.dtype.kind not in "iu" or (count and array.min() < 0):
        raise ValueError(f"labels: expected {count} class indices from 0, got {array.dtype} {array.shape}")
    if count and array.max() >= MOST_CLASSES:
        raise ValueError(f"labels: class {array.max()}; at most {MOST_CLASSES:,} classes are counted")
    return Batch(images, array.astype(np.int64))


class ArrayImages(ImageSource):
    """Images that are all in memory.

    Args:
        images: uint8, (N, 3, H, W) or (N, H, W, 3).
        labels: Class indices, (N,), or None.
        class_names: Names by class index.

    Raises:
        ValueError: If the images have another type or shape.
    """

    def __init__(
        self, images: Tensor, labels: IntArray | Tensor | None = None, *, class_names: Sequence[str] | None = None
    ) -> None:
        if images.ndim == 4 and images.shape[1] != 3 and images.shape[3] == 3:
            images = images.permute(0, 3, 1, 2)
        self._batch = as_batch((images, labels), len(images))
        self.num_images = len(images)
        self.class_names = class_names
        self.fingerprint = hashlib.sha256(self._batch.images.contiguous().numpy().tobytes()).hexdigest()

    def __call__(self, indices: IntArray) -> Batch:
        """Return a selection."""
        labels = self._batch.labels
        return Batch(self._batch.images[torch.from_numpy(indices)], None if labels is None else labels[indices])


def load_npz_images(path: str | Path) -> ArrayImages:
    """Read a file of samples: "arr_0" (N, H, W, 3) uint8, and "arr_1" or "labels" if there are classes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, holds pickles, or other arrays.
    """
    path = Path(path)
    arrays, _ = read_npz(path, ("arr_0",))
    held = set(list_npz(path))
    label_key = next((key for key in ("arr_1", "labels") if key in held), None)
    labels = None if label_key is None else read_npz(path, (label_key,))[0][label_key].reshape(-1)
    if arrays["arr_0"].dtype.kind not in "buif":
        raise ValueError(f"{path}: arr_0 holds {arrays['arr_0'].dtype}, expected uint8 images")
    try:
        return ArrayImages(torch.from_numpy(arrays["arr_0"]), labels)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


class TrainingReader(Protocol):
    """What a reader of training files offers."""

    @property
    def num_images(self) -> int: ...
    @property
    def resolution(self) -> int: ...
    @property
    def class_names(self) -> Sequence[str]: ...
    @property
    def labels(self) -> IntArray: ...
    @property
    def fingerprint(self) -> str: ...
    def read(self, indices: IntArray) -> NDArray[np.uint8]:
        """Return uint8 (B, H, W, 3)."""
        ...


class ReaderImages(ImageSource):
    """Images of a training file, handed in by the caller.

    Args:
        reader: An open training file.
    """

    reads_ahead = True

    def __init__(self, reader: TrainingReader) -> None:
        self._reader = reader
        self.num_images = int(reader.num_images)
        self.class_names = tuple(reader.class_names)
        self.fingerprint = reader.fingerprint

    def __call__(self, indices: IntArray) -> Batch:
        """Read a selection."""
        pixels = torch.from_numpy(np.ascontiguousarray(self._reader.read(indices)))
        return as_batch((pixels.permute(0, 3, 1, 2), self._reader.labels[indices]), len(indices))


def spans(start: int, stop: int, size: int) -> Iterator[IntArray]:
    """Cut the numbers start..stop-1 into consecutive runs."""
    for first in range(start, stop, size):
        yield np.arange(first, min(first + size, stop))

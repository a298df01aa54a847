"""The order in which training sees the images: an endless stream, every position of which can be computed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class ShuffledSampler:
    """An endless stream of image indices, a new permutation per epoch; without state.

    The permutation of an epoch depends on (seed, epoch) only. The position in the stream is the number of images
    shown so far, whatever the batch size and the number of processes: it is all that a checkpoint has to keep.

    With `class_balanced` every class comes equally often: an epoch is N draws that go through all classes in a fresh
    random order again and again, and through each class's images in a fresh order each time they are used up.
    """

    def __init__(self, num_images: int, seed: int, labels: NDArray[np.int64] | None = None, *,
                 class_balanced: bool = False) -> None:  # fmt: skip
        """Make a stream over `num_images` images.

        Args:
            num_images: Number of images, N, at least 1.
            seed: Any non-negative integer.
            labels: Class indices, int64 (N,); needed for `class_balanced` only.
            class_balanced: Whether to show every class equally often.

        Raises:
            ValueError: If an argument is out of range, or labels are needed and missing.
        """
        if num_images < 1:
            raise ValueError(f"num_images {num_images} is not at least 1")
        if seed < 0:
            raise ValueError(f"seed {seed} is negative")
        if class_balanced and (labels is None or len(labels) != num_images):
            raise ValueError(f"class_balanced needs a label for each of the {num_images} images")
        self.num_images = num_images
        self.seed = seed
        self.class_balanced = class_balanced
        self._members: list[NDArray[np.int64]] = []
        if class_balanced:
            assert labels is not None
            order = np.argsort(labels, kind="stable")
            counts = np.bincount(labels)
            self._members = [part for part in np.split(order, np.cumsum(counts)[:-1]) if len(part)]
        self._epoch = -1
        self._order: NDArray[Any] = np.empty(0, np.int64)

    def indices(self, position: int, count: int) -> NDArray[np.int64]:
        """Return the indices of the images from `position` on.

        Args:
            position: Number of images shown before, at least 0.
            count: How many; may span epochs, and exceed the data set.

        Returns:
            Image indices, int64 (count,), each 0..N-1.

        Raises:
            ValueError: If an argument is negative.
        """
        if position < 0 or count < 0:
            raise ValueError(f"position {position} and count {count} must not be negative")
        pieces = []
        while count > 0:
            epoch, start = divmod(position, self.num_images)
            taken = min(count, self.num_images - start)
            pieces.append(self._epoch_order(epoch)[start : start + taken])
            position += taken
            count -= taken
        return np.concatenate(pieces).astype(np.int64) if pieces else np.empty(0, np.int64)

    def _epoch_order(self, epoch: int) -> NDArray[Any]:
        if epoch != self._epoch:
            # PCG64 seeded with a SeedSequence: numpy promises that both stay the same for ever.
            rng = np.random.Generator(np.random.PCG64([self.seed, epoch]))
            self._order = self._balanced_order(rng) if self.class_balanced else self._permutation(rng)
            self._epoch = epoch
        return self._order

    def _permutation(self, rng: np.random.Generator) -> NDArray[Any]:
        kind = np.int32 if self.num_images < 2**31 else np.int64  # half the memory for all that fits
        order: NDArray[Any] = np.arange(self.num_images, dtype=kind)
        rng.shuffle(order)
        return order

    def _balanced_order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        num_classes = len(self._members)
        rounds = -(-self.num_images // num_classes)
        classes = rng.permuted(np.tile(np.arange(num_classes), (rounds, 1)), axis=1).reshape(-1)[: self.num_images]
        order = np.empty(self.num_images, np.int64)
        places = np.split(
            np.argsort(classes, kind="stable"), np.cumsum(np.bincount(classes, minlength=num_classes))[:-1]
        )
        for members, wanted in zip(self._members, places):
            repeats = -(-len(wanted) // len(members))
            draws = rng.permuted(np.tile(members, (repeats, 1)), axis=1).reshape(-1)
            order[wanted] = draws[: len(wanted)]
        return order

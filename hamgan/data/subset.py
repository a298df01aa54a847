"""Some images of a training file, kept apart from the others."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hamgan.data.hdf5 import Pixels, TrainingFile


class Subset:
    """A view of a training file: the images at some indices, numbered anew from 0.

    Args:
        file: The training file.
        indices: Which images, int64 (M,).
    """

    def __init__(self, file: TrainingFile, indices: NDArray[np.int64]) -> None:
        self.file = file
        self.indices = indices
        self.labels: NDArray[np.int64] = file.labels[indices]

    @property
    def path(self) -> Path:
        """The training file's path."""
        return self.file.path

    @property
    def num_images(self) -> int:
        """Number of images in the view, M."""
        return len(self.indices)

    @property
    def resolution(self) -> int:
        """Side of the images, pixels."""
        return self.file.resolution

    def read(self, indices: Sequence[int] | NDArray[np.int64], out: Pixels | None = None) -> Pixels:
        """Read images of the view, as `TrainingFile.read` does."""
        return self.file.read(self.indices[np.asarray(indices, np.int64)], out=out)


def hold_out(file: TrainingFile, count: int, seed: int) -> tuple[Subset, Subset]:
    """Split a training file into images to train on and images never to be shown.

    Every class keeps at least half of its images for training, and one at least.

    Args:
        file: The training file.
        count: Images to be held out, 0 for none.
        seed: Of the choice.

    Returns:
        (training images, held-out images), each in the file's order.

    Raises:
        ValueError: If the classes cannot spare as many.
    """
    order = np.random.Generator(np.random.PCG64([seed, 0x4E1D])).permutation(file.num_images)
    labels = file.labels[order]
    # The place of each image among those of its class, in the random order: the first half of every class can be spared.
    by_class = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=file.num_classes)
    place = np.empty(file.num_images, np.int64)
    place[by_class] = np.arange(file.num_images) - np.repeat(np.cumsum(counts) - counts, counts)
    spared = order[place < counts[labels] // 2]
    if count > len(spared):
        raise ValueError(f"data.hold_out is {count}; {file.path} can spare {len(spared)} images, half of every class")
    held = np.sort(spared[:count])
    kept = np.setdiff1d(np.arange(file.num_images), held, assume_unique=True)
    return Subset(file, kept), Subset(file, held)

"""Batches of augmented samples, each a function of (seed, step, place in the batch)."""

import signal
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hamgan.segmentation.augment import AugmentConfig, augment
from hamgan.segmentation.dataset import LabelledImages, Sample

_ORDER, _AUGMENT, _LAYERS, _BASES = range(4)
"""What a generator is for, so that no two draw the same numbers."""

Place = tuple[int, int]
"""A step and a place in its global batch."""


def sample_generator(seed: int, step: int, place: int) -> np.random.Generator:
    """Return the generator of a sample's augmentation."""
    return np.random.default_rng([seed, _AUGMENT, step, place])


def layer_seed(seed: int, step: int, place: int) -> int:
    """Return the seed of what layers draw for themselves (dropped channels and paths), of a micro-batch from `place` on."""
    return _number(seed, _LAYERS, step, place) >> 1


def bases_key(seed: int, step: int, place: int) -> int:
    """Return the key that a sample's fresh bases of the Hamburger follow from, 64 bits."""
    return _number(seed, _BASES, step, place) - 2**63


def _number(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, num_images: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(num_images)


def image_index(seed: int, position: int, num_images: int) -> int:
    """Return which image comes at a position of the endless stream: every epoch is a permutation of its own."""
    epoch, place = divmod(position, num_images)
    return int(_order(seed, epoch, num_images)[place])


class _Samples(Dataset[tuple[Tensor, Tensor] | Exception]):
    """Augmented samples by step and place."""

    def __init__(self, data: LabelledImages, config: AugmentConfig, *, seed: int, batch_size: int) -> None:
        self.data, self.config, self.seed, self.batch_size = data, config, seed, batch_size

    def __getitem__(self, key: Place) -> tuple[Tensor, Tensor] | Exception:
        step, place = key
        try:
            sample = self.data.read(image_index(self.seed, step * self.batch_size + place, len(self.data)))
        except (ValueError, OSError) as error:
            return error
        return augment(sample, self.config, sample_generator(self.seed, step, place))


class _Keys(torch.utils.data.Sampler[list[Place]]):
    """The steps still to be taken, each with this process's places."""

    def __init__(self, steps: range, places: range) -> None:
        self._steps, self._places = steps, places

    def __iter__(self) -> Iterator[list[Place]]:
        for step in self._steps:
            yield [(step, place) for place in self._places]

    def __len__(self) -> int:
        return len(self._steps)


def _collate(samples: list[tuple[Tensor, Tensor] | Exception]) -> tuple[Tensor, Tensor] | Exception:
    """Stack samples; what went wrong with one travels instead of the batch, as it is, to be raised where training runs."""
    images, labels = [], []
    for sample in samples:
        if isinstance(sample, Exception):
            return sample
        images.append(sample[0])
        labels.append(sample[1])
    return torch.stack(images), torch.stack(labels)


def batches(
    data: LabelledImages,
    config: AugmentConfig,
    *,
    seed: int,
    batch_size: int,
    steps: range,
    places: range,
    num_workers: int,
    pin_memory: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this process's share of the batch of each step.

    Args:
        data: The images.
        config: Their augmentation.
        seed: Of order and augmentation.
        batch_size: Of the global batch.
        steps: From the first one that is still to be taken to the last.
        places: Of this process in the global batch.
        num_workers: Processes that prepare batches; 0: this one does.
        pin_memory: Whether batches lie where a GPU copies from fast.

    Yields:
        Images (len(places), 3, crop, crop) and labels (len(places), crop, crop).

    Raises:
        OSError: If an image or a mask is missing.
        ValueError: If one is bad.
    """
    samples = _Samples(data, config, seed=seed, batch_size=batch_size)
    loader = DataLoader(
        samples,
        batch_sampler=_Keys(steps, places),
        num_workers=num_workers,
        pin_memory=pin_memory,
        collate_fn=_collate,
        worker_init_fn=_prepare_worker if num_workers else None,
    )
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        yield batch


def _prepare_worker(_: int) -> None:
    """Leave signals to the process that trains: it finishes its step, and needs its batches for that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)


class _Reads(Dataset[tuple[int, Sample] | Exception]):
    """Images as they are, by place in a list of indices."""

    def __init__(self, data: LabelledImages, indices: Sequence[int]) -> None:
        self.data, self.indices = data, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> tuple[int, Sample] | Exception:
        index = self.indices[place]
        try:
            return index, self.data.read(index)
        except (ValueError, OSError) as error:
            return error


def _as_it_is(item: tuple[int, Sample] | Exception) -> tuple[int, Sample] | Exception:
    return item


def read_ahead(data: LabelledImages, indices: Sequence[int], num_workers: int) -> Iterator[tuple[int, Sample]]:
    """Yield images with their indices, in order.

    Args:
        data: The images.
        indices: Which of them.
        num_workers: Processes that read ahead; 0: this one reads.

    Raises:
        OSError: If an image or a mask is missing.
        ValueError: If one is bad.
    """
    loader = DataLoader(
        _Reads(data, indices),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_it_is,  # type: ignore[arg-type]  # one item, not a list, where batch_size is None
        worker_init_fn=_prepare_worker if num_workers else None,
    )
    for item in loader:
        if isinstance(item, Exception):
            raise item
        yield item

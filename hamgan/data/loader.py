"""Batches for training: gathered ahead of time by a thread, uint8, ready to be copied to the device."""

import atexit
import queue
import threading
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from hamgan.data.hdf5 import TrainingFile
from hamgan.data.sampler import ShuffledSampler
from hamgan.data.subset import Subset

Batch = tuple[Tensor, Tensor]


class BatchLoader(Iterator[Batch]):
    """An endless iterator of (images, labels) for one rank, in the sampler's order.

    Batch k covers positions position + k * batch_size and on of the sampler's stream; the rank takes its contiguous
    slice of each. What comes out does not depend on how far ahead the thread is.
    """

    def __init__(
        self,
        file: TrainingFile | Subset,
        sampler: ShuffledSampler,
        *,
        batch_size: int,
        position: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
        num_prefetch: int = 3,
    ) -> None:
        """Start reading ahead.

        Args:
            file: The images.
            sampler: Their order; over as many images as the file has.
            batch_size: Images per batch over all ranks.
            position: Images shown before, over all ranks.
            rank: This process's number, 0..world_size-1.
            world_size: Number of processes.
            pin_memory: Whether to put batches into page-locked memory, for asynchronous copies to a GPU.
            num_prefetch: Batches read ahead, at least 1.

        Raises:
            ValueError: If an argument is out of range or world_size does not divide batch_size.
        """
        if batch_size < 1 or num_prefetch < 1 or position < 0:
            raise ValueError(
                f"batch_size {batch_size} and num_prefetch {num_prefetch} must be at least 1, position {position} at least 0"
            )
        if batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} is not divisible by world_size {world_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is outside 0..{world_size - 1}")
        if sampler.num_images != file.num_images:
            raise ValueError(f"the sampler has {sampler.num_images} images, {file.path} has {file.num_images}")
        self._file = file
        self._sampler = sampler
        self._batch_size = batch_size
        self._rank = rank
        self._local_size = batch_size // world_size
        self._position = position
        self._pin_memory = pin_memory
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(num_prefetch)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="BatchLoader", daemon=True)
        atexit.register(self._stop.set)  # torch must not be called while the interpreter goes down
        self._thread.start()

    def __next__(self) -> Batch:
        """Return the next batch.

        Returns:
            Images, uint8 (B / world_size, 3, H, W) with channels-last strides, values 0..255; labels, int64
            (B / world_size,).

        Raises:
            OSError: If the file fails under the reader.
            RuntimeError: If the loader is closed.
        """
        while not self._stop.is_set():
            try:
                item = self._queue.get(timeout=1.0)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                self._stop.set()
                raise item
            return item
        raise RuntimeError("the loader is closed")

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._put(self._read_batch())
        except BaseException as error:
            self._put(error)

    def _read_batch(self) -> Batch:
        # Only this rank's slice of the global batch.
        start = self._position + self._rank * self._local_size
        indices = self._sampler.indices(start, self._local_size)
        self._position += self._batch_size
        side = self._file.resolution
        images = torch.empty((len(indices), side, side, 3), dtype=torch.uint8, pin_memory=self._pin_memory)
        self._file.read(indices, out=images.numpy())
        labels = torch.from_numpy(np.ascontiguousarray(self._file.labels[indices]))
        return images.permute(0, 3, 1, 2), labels.pin_memory() if self._pin_memory else labels

    def _put(self, item: Batch | BaseException) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue

    def close(self) -> None:
        """Stop the thread; may be called twice."""
        self._stop.set()
        atexit.unregister(self._stop.set)
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> "BatchLoader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

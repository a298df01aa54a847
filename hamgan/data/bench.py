"""Measure what limits the data path on this machine: the loader, the disk or memory."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hamgan.data.hdf5 import TrainingFile
from hamgan.data.loader import BatchLoader
from hamgan.data.sampler import ShuffledSampler
from hamgan.data.storage import Run, find_runs

_DISK_BYTES = 2**28  # as much of the file is read for the disk's speed
_DISK_PIECE = 4 * 2**20


def bench(path: str | Path, *, batch_size: int = 256, seconds: float = 2.0) -> dict[str, float]:
    """Measure and print images/s: the loader alone, the disk, and memcpy.

    Args:
        path: A training file.
        batch_size: Images per batch.
        seconds: How long each measurement takes, about.

    Returns:
        Images per second by name: `loader_first` (as the page cache was found), `loader` (the same images again,
        warm), `memcpy` (one core, batches of as many bytes), `disk_sequential`, `disk_random` (cache dropped).

    Raises:
        ValueError: If the file is not a training file or an argument is out of range.
    """
    if batch_size < 1 or seconds <= 0:
        raise ValueError(f"batch_size {batch_size} and seconds {seconds} must be positive")
    path = Path(path)
    with TrainingFile(path) as file:
        sampler = ShuffledSampler(file.num_images, seed=0)
        first, num_batches = _run_loader(file, sampler, batch_size, seconds, None)
        results = {"loader_first": first}
        results["loader"], _ = _run_loader(file, sampler, batch_size, seconds, num_batches)
        results["memcpy"] = _run_memcpy(file, batch_size, seconds)
        runs = find_runs(path, file.header, file.num_images, file.resolution)
        image_bytes = file.resolution * file.resolution * 3
    if runs is not None:
        results["disk_sequential"] = _run_disk(runs[0], image_bytes, random=False, seconds=seconds)
        results["disk_random"] = _run_disk(runs[0], image_bytes, random=True, seconds=seconds)
    meaning = {
        "loader_first": "loader, page cache as found",
        "loader": "loader, same images again (warm)",
        "memcpy": "memcpy, one core",
        "disk_sequential": "disk, one image after the other",
        "disk_random": "disk, images at random, one at a time",
    }
    for name, rate in results.items():
        print(f"{meaning[name]:40} {rate:10.0f} images/s {rate * image_bytes / 1e9:8.2f} GB/s")
    print(f"warm loader / memcpy = {results['loader'] / results['memcpy']:.2f}")
    return results


def _run_loader(file: TrainingFile, sampler: ShuffledSampler, batch_size: int, seconds: float,
                num_batches: int | None) -> tuple[float, int]:  # fmt: skip
    """Return (images/s, batches) over so many batches, or over as many as fit into the time."""
    with BatchLoader(file, sampler, batch_size=batch_size) as loader:
        next(loader)
        done = 0
        started = time.perf_counter()
        while done < num_batches if num_batches is not None else time.perf_counter() - started < seconds:
            next(loader)
            done += 1
        return done * batch_size / (time.perf_counter() - started), done


def _run_memcpy(file: TrainingFile, batch_size: int, seconds: float) -> float:
    source = np.ones((4, batch_size, file.resolution, file.resolution, 3), np.uint8)
    target = np.ones_like(source[0])
    return _rate(lambda i: np.copyto(target, source[i % 4]), seconds) * batch_size


def _run_disk(run: Run, image_bytes: int, *, random: bool, seconds: float) -> float:
    fd = os.open(run.path, os.O_RDONLY)
    try:
        piece = image_bytes if random else max(image_bytes, _DISK_PIECE // image_bytes * image_bytes)
        places = np.arange(0, max(min(run.num_images * image_bytes, _DISK_BYTES) - piece, 0) + 1, piece) + run.offset
        if random:
            np.random.default_rng(0).shuffle(places)
        with contextlib.suppress(AttributeError, OSError):
            os.posix_fadvise(fd, run.offset, _DISK_BYTES, os.POSIX_FADV_DONTNEED)
        return _rate(lambda i: os.pread(fd, piece, int(places[i])), seconds, len(places)) * (piece / image_bytes)
    finally:
        os.close(fd)


def _rate(call: Callable[[int], object], seconds: float, most: int | None = None) -> float:
    """Calls per second, until the time is over or `most` calls are made."""
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds and (most is None or done < most):
        call(done)
        done += 1
    return done / (time.perf_counter() - started)

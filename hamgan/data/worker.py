"""What a decoding process does: blocks of images, from the source's bytes straight into the data file."""

import contextlib
import fcntl
import os
import pickle
import signal
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hamgan.data.crop_jpeg import square_decoder
from hamgan.data.decode import Color, array_to_rgb, decode, decode_square
from hamgan.data.fileio import crc32, lock, write_all
from hamgan.data.resample import centre_square, resize_square
from hamgan.data.source import Locator, Reader

# Bytes that are written at once: they are still in the cache, and no other process waits long for the file.
_PIECE = 2**19


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all blocks of a build have in common.

    Attributes:
        reader: Fetches the source's images.
        data_path: The data file.
        offset: Byte offset of the first pixel in it.
        resolution: Side of the images, pixels.
        resize: One of `resample.RESIZES`.
        background: RGB, 0..255, behind transparent pixels.
    """

    reader: Reader
    data_path: Path
    offset: int
    resolution: int
    resize: str
    background: Color


@dataclass(frozen=True)
class Block:
    """A block that is in the data file: its CRC32 and its unreadable images as (index, reason)."""

    crc32: int
    bad: list[tuple[int, str]]


class BlockBuilder:
    """Decodes blocks and writes them into the data file."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._decoder = square_decoder()
        self._place = partial(centre_square, resize=job.resize)
        self._fd = os.open(job.data_path, os.O_RDWR)
        lock(self._fd, fcntl.LOCK_SH)

    def build(self, first: int, locators: list[Locator]) -> Block:
        """Decode consecutive images and write them.

        Args:
            first: Index of the first in the data file.
            locators: Where the source has them.

        Returns:
            The block's CRC32 and which images could not be read; their places hold zeros.

        Raises:
            OSError: If the data file cannot be written.
        """
        job = self._job
        image_bytes = job.resolution * job.resolution * 3
        # Large images go in several pieces, so that memory does not grow with the block.
        step = max(1, _PIECE // image_bytes)
        pixels = np.empty((min(step, len(locators)), job.resolution, job.resolution, 3), np.uint8)
        crc, bad = 0, []
        for start in range(0, len(locators), step):
            piece = pixels[: len(locators) - start]
            for i in range(len(piece)):
                try:
                    self._fetch(locators[start + i], piece[i])
                except (OSError, ValueError, MemoryError) as error:
                    piece[i] = 0
                    bad.append((first + start + i, " ".join(str(error).split()) or type(error).__name__))
            data = piece.reshape(-1).data
            write_all(self._fd, data, job.offset + (first + start) * image_bytes)
            crc = crc32(data, crc)
        return Block(crc, bad)

    def _fetch(self, locator: Locator, out: NDArray[np.uint8]) -> None:
        # On its own, so that all memory is free for the next image, which then finds it in the processor's cache.
        job = self._job
        payload = job.reader.read(locator)
        if not isinstance(payload, bytes):
            image = array_to_rgb(payload)
        elif job.resize == "none":  # which looks at the size
            image = decode(payload, job.background)
        else:
            image = decode_square(payload, job.background, self._place, self._decoder)
        resize_square(image, job.resolution, job.resize, out)

    def close(self) -> None:
        """Close the data file."""
        os.close(self._fd)


def main() -> None:
    """Be a decoding process: a job on standard input, then tasks, each answered by its block or an exception."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the builder decides what an interrupt means
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library may print must not get between the answers
    tasks = sys.stdin.buffer
    with contextlib.suppress(EOFError, BrokenPipeError):
        builder = BlockBuilder(pickle.load(tasks))
        while True:
            first, locators = pickle.load(tasks)
            answer: Block | Exception
            try:
                answer = builder.build(first, locators)
            except Exception as error:
                answer = error
            pickle.dump(answer, answers)
            answers.flush()
    os._exit(0)  # the pipe to a killed builder cannot be flushed

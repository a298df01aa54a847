"""What a decoding process does: blocks of images, from the source's bytes straight into the data file."""

import contextlib
import fcntl
import os
import pickle
import signal
import sys
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hamgan.data.crop_jpeg import square_decoder
from hamgan.data.decode import Color, array_to_rgb, decode, decode_square
from hamgan.data.direct import ALIGNMENT, DirectFile, images_at_once, page_memory
from hamgan.data.fileio import crc32, lock
from hamgan.data.resample import centre_square, resize_square
from hamgan.data.source import Locator, Reader


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
        direct: Whether the file is written past the system's cache.
    """

    reader: Reader
    data_path: Path
    offset: int
    resolution: int
    resize: str
    background: Color
    direct: bool


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
        self._file = DirectFile(job.data_path, self._fd, direct=job.direct)
        # Large images go in several pieces, so that memory does not grow with the block; while one is on its way to the
        # disk, the next is decoded.
        self._image_bytes = job.resolution * job.resolution * 3
        self._step, _ = images_at_once(self._image_bytes)
        size = -(-self._step * self._image_bytes // ALIGNMENT) * ALIGNMENT
        self._pieces = [_Piece(size), _Piece(size)]
        self._writer = ThreadPoolExecutor(1)

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
        crc, bad = 0, []
        for piece in self._pieces:
            piece.on_its_way = None
        try:
            for start in range(0, len(locators), self._step):
                piece = self._pieces[0]
                piece.wait()
                part = locators[start : start + self._step]
                bad += self._fill(piece.memory, first + start, part)
                data = piece.memory[: len(part) * self._image_bytes]
                position = self._job.offset + (first + start) * self._image_bytes
                piece.on_its_way = self._writer.submit(self._file.write, data, position)
                crc = crc32(data, crc)
                self._pieces.reverse()
        finally:
            # Also after an error: the next block must not meet this one's writes.
            wait([piece.on_its_way for piece in self._pieces if piece.on_its_way is not None])
        for piece in self._pieces:
            piece.wait()
        return Block(crc, bad)

    def _fill(self, memory: memoryview, first: int, locators: list[Locator]) -> list[tuple[int, str]]:
        side = self._job.resolution
        images = np.frombuffer(memory, np.uint8, len(locators) * self._image_bytes).reshape(-1, side, side, 3)
        bad = []
        for i, locator in enumerate(locators):
            try:
                self._fetch(locator, images[i])
            except (OSError, ValueError, MemoryError) as error:
                images[i] = 0
                bad.append((first + i, " ".join(str(error).split()) or type(error).__name__))
        return bad

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
        self._writer.shutdown()
        self._file.close()
        os.close(self._fd)


@dataclass
class _Piece:
    """Memory for images, and the write that it may still be needed for."""

    size: int

    def __post_init__(self) -> None:
        self.memory = page_memory(self.size)
        self.on_its_way: Future[None] | None = None

    def wait(self) -> None:
        """Wait until the memory may be written over; raises what the write raised."""
        write, self.on_its_way = self.on_its_way, None
        if write is not None:
            write.result()


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

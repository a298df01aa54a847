"""The unfinished output: a data file laid out as the final one, and a journal of the blocks that are in it.

Whatever moment the builder is killed at, the next one reads the journal, decodes what it lacks, and proves every
block against its CRC32 before the file gets its name. Blocks that fail the proof are simply decoded again.
"""

import contextlib
import fcntl
import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hamgan.data import format as file_format
from hamgan.data.direct import DirectFile, images_at_once
from hamgan.data.fileio import crc32, lock, read_all, start_writing, sync_folder, write_all
from hamgan.data.format import BLOCK_IMAGES, Header, num_blocks
from hamgan.data.worker import Block

_DIRECT_FROM = 2**28  # bytes of pixels: smaller files are still in the system's cache when training begins
_CHECKED_AT_ONCE = 256  # blocks handed to the threads, so that memory does not grow with the number of images


class Staging:
    """The data file and its journal beside the output; one builder at a time.

    Attributes:
        data_path: The data file, sparse until its blocks are written.
        offset: Byte offset of the first pixel in it.
        direct: Whether it is written past the system's cache.
        blocks: What is in it, by block number.
    """

    def __init__(self, out: Path, plan: dict[str, Any], num_images: int, resolution: int) -> None:
        """Open what an earlier builder left for the same plan, or start afresh.

        Raises:
            ValueError: If another builder is at work on the same output.
        """
        self.out = out
        self.data_path = out.with_name(out.name + ".partial")
        self._journal_path = out.with_name(out.name + ".partial.journal")
        self._num_images = num_images
        self._resolution = resolution
        self._image_bytes = resolution * resolution * 3
        _, whole_pages = images_at_once(self._image_bytes)
        self.direct = whole_pages and num_images * self._image_bytes >= _DIRECT_FROM
        self.blocks: dict[int, Block] = {}
        self._proved: set[int] = set()
        self._proofs: dict[int, Future[bool]] = {}  # those that are not done
        self._prover = ThreadPoolExecutor(1)
        self._journal = os.open(self._journal_path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._data = -1
        self._pages: DirectFile | None = None
        if not lock(self._journal, fcntl.LOCK_EX):
            os.close(self._journal)
            raise ValueError(f"{out}: another build is writing it at this moment")
        try:
            self._open_data(plan)
        except BaseException:
            self.close()
            raise

    def _open_data(self, plan: dict[str, Any]) -> None:
        self.offset = file_format.lay_out(self._num_images, self._resolution, None)[1]
        self._data = os.open(self.data_path, os.O_RDWR | os.O_CREAT, 0o666)
        self._pages = DirectFile(self.data_path, self._data, direct=self.direct)
        # Orphans of a killed builder hold a shared lock until they notice and leave.
        if not lock(self._data, fcntl.LOCK_EX, wait_s=30):
            raise ValueError(f"{self.out}: processes of an earlier build are still writing it")
        lock(self._data, fcntl.LOCK_UN)
        self.blocks = self._read_journal(plan)
        if not self.blocks:
            os.ftruncate(self._journal, 0)
            self._append({"plan": plan})
            os.ftruncate(self._data, 0)
        os.ftruncate(self._data, self.offset + self._num_images * self._image_bytes)

    def _read_journal(self, plan: dict[str, Any]) -> dict[int, Block]:
        text = self._journal_path.read_bytes()
        complete, _, torn = text.rpartition(b"\n")
        blocks: dict[int, Block] = {}
        for number, line in enumerate(complete.split(b"\n") if complete else []):
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if number == 0:
                if entry != {"plan": plan}:
                    return {}
            elif "crc32" in entry:
                blocks[entry["block"]] = Block(entry["crc32"], [tuple(bad) for bad in entry["bad"]])
            else:
                blocks.pop(entry["block"], None)
        if torn:
            os.ftruncate(self._journal, len(complete) + 1)
        return blocks

    def _append(self, entry: dict[str, Any]) -> None:
        os.write(self._journal, json.dumps(entry).encode() + b"\n")

    def record(self, number: int, block: Block) -> None:
        """Note that a block is in the data file, and begin to prove it."""
        self._append({"block": number, "crc32": block.crc32, "bad": block.bad})
        self.blocks[number] = block
        first = number * BLOCK_IMAGES * self._image_bytes
        start_writing(self._data, self.offset + first, self.images_in(number) * self._image_bytes)
        proof = self._proofs[number] = self._prover.submit(self._prove, number, block.crc32)
        proof.add_done_callback(lambda _: self._proofs.pop(number, None))

    def _prove(self, number: int, crc: int) -> bool:
        # Noted before the result is there: whoever waits for that may then clear what is noted.
        damaged = self._is_damaged(number, crc, self._num_images)
        if not damaged:
            self._proved.add(number)
        return damaged

    def forget(self, number: int) -> None:
        """Note that a block has to be decoded again."""
        self._append({"block": number})
        del self.blocks[number]
        self._proved.discard(number)
        self._proofs.pop(number, None)

    def images_in(self, number: int) -> int:
        """Number of images in a block; all blocks but the last are full."""
        return min(BLOCK_IMAGES, self._num_images - number * BLOCK_IMAGES)

    def missing_blocks(self) -> list[int]:
        """Numbers of the blocks still to decode, ascending."""
        return [number for number in range(num_blocks(self._num_images)) if number not in self.blocks]

    def bytes_needed(self) -> int:
        """Bytes of disk that the missing blocks will take."""
        return sum(self.images_in(number) for number in self.missing_blocks()) * self._image_bytes

    def crc32(self) -> NDArray[np.uint32]:
        """CRC32 of each block as it was written."""
        return np.asarray([self.blocks[i].crc32 for i in range(num_blocks(self._num_images))], np.uint32)

    def damaged_blocks(self, crcs: NDArray[np.uint32], num_images: int, threads: int) -> list[int]:
        """Read back what is not proved yet, several blocks at a time.

        Returns:
            The numbers of all blocks that do not have their CRC32.
        """

        def is_damaged(number: int) -> bool:
            if number in self._proved:
                return False
            if (proof := self._proofs.get(number)) is not None and not proof.cancel():
                return proof.result()
            return self._is_damaged(number, crcs[number], num_images)

        wrong: list[int] = []
        with (
            ThreadPoolExecutor(threads) as pool,
            tqdm(total=num_images, desc="verifying", unit=" images", delay=2) as bar,
        ):
            for start in range(0, len(crcs), _CHECKED_AT_ONCE):
                numbers = range(start, min(start + _CHECKED_AT_ONCE, len(crcs)))
                wrong += [number for number, damaged in zip(numbers, pool.map(is_damaged, numbers)) if damaged]
                bar.update(min(numbers.stop * BLOCK_IMAGES, num_images) - start * BLOCK_IMAGES)
        return wrong

    def _is_damaged(self, number: int, crc: int, num_images: int) -> bool:
        first = number * BLOCK_IMAGES
        size = min(BLOCK_IMAGES, num_images - first) * self._image_bytes
        assert self._pages is not None
        return self._pages.crc32(size, self.offset + first * self._image_bytes) != crc

    def bad_images(self) -> list[tuple[int, str]]:
        """Unreadable images as (index, reason), ascending."""
        return sorted(bad for block in self.blocks.values() for bad in block.bad)

    def compact(self, bad: list[int]) -> NDArray[np.uint32]:
        """Close the gaps that unreadable images left, keeping the order.

        A kill half-way leaves blocks that differ from their CRC32; the next build decodes them again.

        Args:
            bad: Indices of the gaps, ascending.

        Returns:
            CRC32 of each block of the result.
        """
        self._proved.clear()
        self._proofs.clear()
        first = bad[0] // BLOCK_IMAGES if bad else num_blocks(self._num_images)
        crcs = [self.blocks[number].crc32 for number in range(first)]
        gaps = set(bad)
        target, kept = first * BLOCK_IMAGES, bytearray()
        for number in tqdm(range(first, num_blocks(self._num_images)), "closing gaps", unit=" blocks", delay=2):
            data = self._pread(number * BLOCK_IMAGES, self.images_in(number))
            for i in range(self.images_in(number)):
                if number * BLOCK_IMAGES + i not in gaps:
                    kept += data[i * self._image_bytes : (i + 1) * self._image_bytes]
            last = number == num_blocks(self._num_images) - 1
            while len(kept) >= BLOCK_IMAGES * self._image_bytes or (last and kept):
                block = bytes(kept[: BLOCK_IMAGES * self._image_bytes])
                del kept[: BLOCK_IMAGES * self._image_bytes]
                write_all(self._data, block, self.offset + target * self._image_bytes)
                crcs.append(crc32(block))
                target += BLOCK_IMAGES
        return np.asarray(crcs, np.uint32)

    def _pread(self, first: int, count: int) -> bytes:
        return read_all(self._data, count * self._image_bytes, self.offset + first * self._image_bytes)

    def finish(self, header: Header) -> None:
        """Put the header around the pixels, flush all to disk and give the file its name."""
        seal(self.data_path, self._data, header)
        os.replace(self.data_path, self.out)
        sync_folder(self.out.parent)
        self.remove_leftovers()

    def remove_leftovers(self) -> None:
        """Delete the journal and what else lies beside the output."""
        for path in (self.data_path, self._journal_path):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files; what is in them stays for the next builder."""
        self._prover.shutdown(cancel_futures=True)
        if self._pages is not None:
            self._pages.close()
        for fd in (self._data, self._journal):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._data = self._journal = -1


def sweep(out: Path) -> None:
    """Delete what a builder left that was killed right after its file got its name."""
    journal = out.with_name(out.name + ".partial.journal")
    if journal.exists():
        fd = os.open(journal, os.O_RDONLY)
        if lock(fd, fcntl.LOCK_EX):
            journal.unlink(missing_ok=True)
        os.close(fd)


def seal(path: Path, fd: int, header: Header) -> None:
    """Put the header around pixels that are in place, flush all to disk and check the header. May be repeated.

    Args:
        path: The data file.
        fd: The same, open for writing.
        header: What to put.
    """
    memory, start, end = file_format.lay_out(len(header.labels), header.resolution, header)
    for first, last in ((0, start), (end, memory.size)):
        for position, data in memory.pieces(first, last):
            write_all(fd, data, position)
    os.ftruncate(fd, memory.size)
    os.fsync(fd)
    with file_format.open_hdf5(path) as file:
        file_format.read_header(file, path)

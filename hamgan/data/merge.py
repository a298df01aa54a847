"""Join the parts that `build` made with `shard`, by reference or by copy."""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hamgan.data import format as file_format
from hamgan.data.build import BuildSummary
from hamgan.data.fileio import crc32, naming, sync_folder, write_all
from hamgan.data.format import BLOCK_IMAGES, Header
from hamgan.data.staging import seal
from hamgan.data.storage import Run, Sequential, find_runs


def merge(parts: Sequence[str | Path], out: str | Path, *, copy: bool = False, overwrite: bool = False) -> BuildSummary:
    """Join all parts of a build, in any order; their images are verified on the way.

    Args:
        parts: The files of all shards.
        out: The joined file. It appears only when complete.
        copy: Copy the images, which gives the very file of an undivided build; else refer to the parts (an HDF5
            virtual data set), which must then stay where they are relative to `out`.
        overwrite: Replace a file at `out`.

    Raises:
        ValueError: If the parts are damaged, incomplete or of different builds, or `out` exists.
        OSError: If the disk is full or fails.
    """
    started = time.monotonic()
    out = Path(out).expanduser()
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists; overwrite=True (--overwrite) replaces it")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out}: the folder {out.parent} does not exist")
    headers = _in_order([Path(part).expanduser() for part in parts])
    if out.resolve() in {path.resolve() for path, _ in headers}:
        raise ValueError(f"{out} is one of the parts; give the joined file another name")
    header = _joined(headers)
    runs = [run for path, part in headers for run in _runs(path, part)]
    partial = out.with_name(out.name + ".partial")
    fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        with naming(out):
            if copy:
                header.block_crc32 = _copy(headers, runs, header, fd, out)
            else:
                header.block_crc32 = _check(headers, runs, header, None)
                header.parts = [
                    (os.path.relpath(path.resolve(), out.parent.resolve()), len(part.labels)) for path, part in headers
                ]
            seal(partial, fd, header)
            os.replace(partial, out)
    finally:
        os.close(fd)
        partial.unlink(missing_ok=True)
    sync_folder(out.parent)
    how = "copied" if copy else "by reference: keep the parts where they are"
    print(f"{out}: {len(header.labels)} images of {len(headers)} parts ({how})")
    return BuildSummary(
        path=out,
        num_images=len(header.labels),
        num_classes=len(header.class_names),
        num_missing=len(header.missing),
        seconds=time.monotonic() - started,
        found=False,
    )


def _in_order(paths: list[Path]) -> list[tuple[Path, Header]]:
    """Read the headers and order them by shard.

    Raises:
        ValueError: If a shard is missing, comes twice or belongs to another build.
    """
    if not paths:
        raise ValueError("no part to join")
    found: dict[int, tuple[Path, Header]] = {}
    first: Header | None = None
    for path in paths:
        with file_format.open_hdf5(path) as file:
            header = file_format.read_header(file, path)
        first = first or header
        for name in ("resolution", "resize", "background", "source_fingerprint", "class_names"):
            if getattr(header, name) != getattr(first, name):
                theirs, ours = getattr(header, name), getattr(first, name)
                what = "other classes" if name == "class_names" else f"{name} {theirs}, not {ours}"
                raise ValueError(f"{path}: is of another build than {paths[0]} ({what})")
        index, count = header.shard
        if count == 1:
            raise ValueError(f"{path}: is a whole file, not a shard")
        if count != first.shard[1]:
            raise ValueError(f"{path}: is shard {index}/{count}, while {paths[0]} is one of {first.shard[1]}")
        if index in found:
            raise ValueError(f"{path}: is shard {index}/{count}, as is {found[index][0]}")
        found[index] = (path, header)
    assert first is not None
    missing = [f"{i}/{first.shard[1]}" for i in range(1, first.shard[1] + 1) if i not in found]
    if missing:
        raise ValueError(f"shards missing: {', '.join(missing)}")
    return [found[index] for index in sorted(found)]


def _joined(headers: list[tuple[Path, Header]]) -> Header:
    first = headers[0][1]
    header = replace(
        first,
        labels=np.concatenate([part.labels for _, part in headers]),
        missing=[entry for _, part in headers for entry in part.missing],
        shard=(1, 1),
        block_images=BLOCK_IMAGES,
    )
    counts = np.bincount(header.labels, minlength=len(header.class_names))
    if header.missing and not counts.all():
        raise ValueError(f"class {header.class_names[int(counts.argmin())]!r} has no image that can be read")
    return header


def _runs(path: Path, header: Header) -> list[Run]:
    runs = find_runs(path, header, len(header.labels), header.resolution)
    assert runs is not None
    return runs


def _check(headers: list[tuple[Path, Header]], runs: list[Run], joined: Header,
           write: Callable[[int, bytes], None] | None) -> NDArray[np.uint32]:  # fmt: skip
    """Read all parts, prove each block of theirs and return the CRC32 of the joined file's blocks.

    Args:
        headers: The parts.
        runs: Where each part's images lie, one run per part.
        joined: The joined file's header.
        write: Called with (index of the first image, bytes) of every block of a part, in order; or None.
    """
    image_bytes = joined.resolution * joined.resolution * 3
    crcs: list[int] = []
    held, held_images, done = 0, 0, 0
    with tqdm(total=len(joined.labels), desc="joining", unit=" images", delay=1) as bar:
        for (path, part), run in zip(headers, runs):
            reader = Sequential([run], image_bytes)
            for number, (count, data) in enumerate(reader.blocks(part.block_images)):
                if crc32(data) != part.block_crc32[number]:
                    raise ValueError(f"{path}: block {number} is damaged; build this shard again")
                if write is not None:
                    write(done, data)
                # A part may end inside a block of the joined file.
                view = memoryview(data)
                while len(view):
                    taken = view[: (BLOCK_IMAGES - held_images) * image_bytes]
                    held = crc32(taken, held)
                    held_images += len(taken) // image_bytes
                    view = view[len(taken) :]
                    if held_images == BLOCK_IMAGES:
                        crcs.append(held)
                        held, held_images = 0, 0
                done += count
                bar.update(count)
            reader.close()
    if held_images:
        crcs.append(held)
    return np.asarray(crcs, np.uint32)


def _copy(
    headers: list[tuple[Path, Header]], runs: list[Run], joined: Header, fd: int, out: Path
) -> NDArray[np.uint32]:
    """Copy all images to where they belong in the joined file; return the CRC32 of its blocks."""
    image_bytes = joined.resolution * joined.resolution * 3
    needed, free = len(joined.labels) * image_bytes, shutil.disk_usage(out.parent).free
    if needed > free:
        raise OSError(f"{out} needs {needed / 1e9:.3g} GB, and {out.parent} has {free / 1e9:.3g} GB free")
    _, start, _ = file_format.lay_out(len(joined.labels), joined.resolution, None)
    return _check(headers, runs, joined, lambda first, data: write_all(fd, data, start + first * image_bytes))

"""Build a training file from any source, in parallel, so that a kill at any moment costs one block per process."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hamgan.data import format as file_format
from hamgan.data import worker
from hamgan.data.crop_jpeg import has_own_huffman
from hamgan.data.decode import Color
from hamgan.data.fileio import naming
from hamgan.data.format import BLOCK_IMAGES, VERSION, Header
from hamgan.data.open_source import open_source
from hamgan.data.pool import Task, build_blocks
from hamgan.data.resample import RESIZES
from hamgan.data.source import Source
from hamgan.data.staging import Staging, sweep
from hamgan.data.unpack import remove_copies

# Room for the header, asked for when free disk is checked.
_HEADER_BYTES, _HEADER_BYTES_PER_IMAGE = 2**18, 16
_BAD_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class BuildSummary:
    """What a build did.

    Attributes:
        path: The training file.
        num_images: Images in it.
        num_classes: Classes in it.
        num_missing: Images left out because they could not be read.
        seconds: Wall time.
        found: True if the same file was already there and nothing was done.
    """

    path: Path
    num_images: int
    num_classes: int
    num_missing: int
    seconds: float
    found: bool


def build(
    source: str | Path,
    out: str | Path,
    *,
    resolution: int,
    resize: str = "lanczos",
    background: Color = (255, 255, 255),
    workers: int | None = None,
    skip_bad: bool = False,
    shard: str | tuple[int, int] | None = None,
    labels: str | Path | None = None,
    classes: str | Path | None = None,
    split: str = "train",
    overwrite: bool = False,
) -> BuildSummary:
    """Build a training file; run the same call again after a kill to go on.

    Args:
        source: The word `emoji`, or a folder, an archive, a table of labels or a published data set's file.
        out: The file to write. It appears under this name only when complete and verified.
        resolution: Side of the images, pixels.
        resize: `lanczos`, `box`, `bilinear` (antialiased), `tfgan` (the official HamGAN's) or `none` (exact size).
        background: RGB, 0..255, behind transparent pixels.
        workers: Decoding processes; None for one per core. Does not change the result.
        skip_bad: Leave unreadable images out and record them, instead of failing at the end with their list.
        shard: "i/n" builds the i-th of n parts, counted from 1, for `merge`.
        labels: A table of (path, label), or ImageNet's validation ground truth.
        classes: A file with one class name per line.
        split: "train" or "test", for published data sets that hold both.
        overwrite: Replace a finished file that holds something else.

    Raises:
        ValueError: If an argument, the source or an image in it is bad, or `out` holds something else.
        OSError: If the disk is full or fails.
    """
    started = time.monotonic()
    out = Path(out).expanduser()
    part = parse_shard(shard)
    _check_arguments(resolution, resize, background, workers, split, out)
    try:
        images = open_source(source, labels=labels, classes=classes, split=split, scratch=out)
    except (ValueError, OSError):
        remove_copies(out)
        raise
    for note in images.notes:
        print(note)
    plan = {
        "version": VERSION,
        "source_fingerprint": images.fingerprint(),
        "resolution": resolution,
        "resize": resize,
        "background": list(background),
        "shard": list(part),
    }
    if not overwrite and out.exists():
        header = _finished(out, plan, skip_bad)
        sweep(out)
        remove_copies(out)
        print(f"{out} is already there, built from the same images in the same way")
        return _summary(out, header, started, found=True)
    _say_what_is_slow(images, resize)
    first, last = len(images) * (part[0] - 1) // part[1], len(images) * part[0] // part[1]
    if first == last:
        raise ValueError(f"shard {part[0]}/{part[1]}: there are only {len(images)} images to share")
    with naming(out, "; what is done is kept for the next try"):
        staging = Staging(out, plan, last - first, resolution)
        try:
            header = _build(images, first, last, staging, plan, workers or num_cores(), skip_bad)
        finally:
            staging.close()
    remove_copies(out)
    summary = _summary(out, header, started, found=False)
    missing = f", {summary.num_missing} left out" if summary.num_missing else ""
    print(f"{out}: {summary.num_images} images, {summary.num_classes} classes{missing}, {summary.seconds:.1f} s")
    return summary


def _build(images: Source, first: int, last: int, staging: Staging, plan: dict[str, Any], workers: int,
           skip_bad: bool) -> Header:  # fmt: skip
    """Decode what is missing, prove all blocks, close gaps, and give the file its name."""
    resolution, resize, background = plan["resolution"], plan["resize"], tuple(plan["background"])
    _check_disk(staging, last - first)
    job = worker.Job(reader=images.reader(), data_path=staging.data_path, offset=staging.offset,
                     resolution=resolution, resize=resize, background=background, direct=staging.direct)  # fmt: skip
    for _ in range(3):
        _decode(images, first, staging, job, workers)
        damaged = staging.damaged_blocks(staging.crc32(), last - first, workers)
        if not damaged:
            break
        for number in damaged:
            staging.forget(number)
    else:
        raise OSError(f"{staging.data_path}: block {damaged[0]} never reads back as written; check the disk")
    bad = staging.bad_images()
    missing = [(images.keys[first + index], reason) for index, reason in bad]
    _report(staging.out, missing, last - first, skip_bad)
    kept = np.ones(last - first, bool)
    kept[[index for index, _ in bad]] = False
    labels = images.labels[first:last][kept]
    _check_classes_left(images, labels, plan, bool(missing))
    crcs = staging.crc32()
    if bad:
        crcs = staging.compact([index for index, _ in bad])
        if damaged := staging.damaged_blocks(crcs, len(labels), workers):
            raise OSError(f"{staging.data_path}: block {damaged[0]} reads back other than written; check the disk")
    header = Header(
        resolution=resolution,
        labels=labels,
        class_names=images.class_names,
        block_crc32=crcs,
        resize=resize,
        background=background,
        source=Path(images.name).name,
        source_fingerprint=plan["source_fingerprint"],
        shard=tuple(plan["shard"]),
        missing=missing,
    )
    staging.finish(header)
    return header


def _decode(images: Source, first: int, staging: Staging, job: worker.Job, workers: int) -> None:
    """Decode the blocks that the data file lacks."""
    todo = staging.missing_blocks()
    if not todo:
        return
    count = sum(staging.images_in(number) for number in todo)
    total = sum(staging.images_in(number) for number in staging.blocks) + count

    def task(number: int) -> Task:
        start = number * BLOCK_IMAGES
        return start, [images.locator(first + start + i) for i in range(staging.images_in(number))]

    with tqdm(total=total, initial=total - count, desc=staging.out.name, unit=" images", smoothing=0.1) as bar:
        # One process decodes here: starting another would take longer.
        workers = min(workers, len(todo))
        run = _in_process(job, todo, task) if workers == 1 else build_blocks(job, todo, task, workers)
        with contextlib.closing(run):
            for number, block in run:
                staging.record(number, block)
                bar.update(staging.images_in(number))


def _in_process(
    job: worker.Job, todo: list[int], task: Callable[[int], Task]
) -> Generator[tuple[int, worker.Block], None, None]:
    builder = worker.BlockBuilder(job)
    try:
        for number in todo:
            yield number, builder.build(*task(number))
    finally:
        builder.close()


def _say_what_is_slow(images: Source, resize: str) -> None:
    # At the first image alone: a hint is not worth a look at a million names.
    if resize != "none" and images.keys[0].lower().endswith((".jpg", ".jpeg")) and not has_own_huffman():
        print("JPEGs take nearly twice as long without hamgan's own decoder; docs/data.md tells what it needs")


def _finished(out: Path, plan: dict[str, Any], skip_bad: bool) -> Header:
    """Read the header of a finished file if it is what the plan would build.

    Raises:
        ValueError: If it is anything else.
    """
    refusal = f"{out} exists and holds something else; overwrite=True (--overwrite) replaces it"
    try:
        with file_format.open_hdf5(out) as file:
            header = file_format.read_header(file, out)
    except ValueError:
        raise ValueError(refusal) from None
    same = {
        "version": VERSION,
        "source_fingerprint": header.source_fingerprint,
        "resolution": header.resolution,
        "resize": header.resize,
        "background": list(header.background),
        "shard": list(header.shard),
    }
    if same != plan or (header.missing and not skip_bad):
        differing = [name for name in plan if same[name] != plan[name]] or [f"{len(header.missing)} images left out"]
        raise ValueError(refusal.replace("something else", f"something else ({', '.join(differing)})"))
    return header


def _summary(out: Path, header: Header, started: float, *, found: bool) -> BuildSummary:
    return BuildSummary(
        path=out,
        num_images=len(header.labels),
        num_classes=len(header.class_names),
        num_missing=len(header.missing),
        seconds=time.monotonic() - started,
        found=found,
    )


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse_shard(shard: str | tuple[int, int] | None) -> tuple[int, int]:
    """Read "i/n", counted from 1; None is the whole, (1, 1).

    Raises:
        ValueError: If it is not 1/n ... n/n.
    """
    if shard is None:
        return 1, 1
    try:
        index, count = (int(v) for v in (shard.split("/") if isinstance(shard, str) else shard))
    except ValueError:
        raise ValueError(f"shard {shard!r} is not of the form i/n, such as 2/8") from None
    if not 1 <= index <= count:
        raise ValueError(f"shard {index}/{count}: shards count from 1/{count} to {count}/{count}")
    return index, count


def _check_arguments(resolution: int, resize: str, background: Color, workers: int | None, split: str,
                     out: Path) -> None:  # fmt: skip
    if not 4 <= resolution <= 4096:
        raise ValueError(f"resolution {resolution} is outside 4..4096")
    if resize not in RESIZES:
        raise ValueError(f"resize {resize!r} is not one of {', '.join(RESIZES)}")
    if len(background) != 3 or not all(0 <= v <= 255 for v in background):
        raise ValueError(f"background {background} is not three values of 0..255")
    if workers is not None and workers < 1:
        raise ValueError(f"workers {workers} is not at least 1")
    if split not in ("train", "test"):
        raise ValueError(f"split {split!r} is not train or test")
    if out.is_dir():
        raise ValueError(f"{out} is a folder; name the file to write in it")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out}: the folder {out.parent} does not exist")


def _check_disk(staging: Staging, num_images: int) -> None:
    needed = staging.bytes_needed() + _HEADER_BYTES + num_images * _HEADER_BYTES_PER_IMAGE
    free = shutil.disk_usage(staging.out.parent).free
    if needed > free:
        raise OSError(
            f"{staging.out} needs {needed / 1e9:.3g} GB more, and {staging.out.parent} has {free / 1e9:.3g} GB free"
        )


def _report(out: Path, missing: list[tuple[str, str]], num_images: int, skip_bad: bool) -> None:
    """Tell which images could not be read, and fail if that is not allowed.

    Raises:
        ValueError: If there are some and `skip_bad` is False, or if there are no others.
    """
    report = out.with_name(out.name + ".bad.txt")
    if not missing:
        report.unlink(missing_ok=True)
        return
    report.write_text("".join(f"{key}\t{reason}\n" for key, reason in missing), errors="surrogateescape")
    for key, reason in missing[:_BAD_SHOWN]:
        print(f"unreadable: {key}: {reason}")
    if len(missing) > _BAD_SHOWN:
        print(f"and {len(missing) - _BAD_SHOWN} more, listed in {report}")
    if len(missing) == num_images:
        raise ValueError(f"none of the {num_images} images can be read (first: {missing[0][0]}: {missing[0][1]})")
    if not skip_bad:
        raise ValueError(
            f"{len(missing)} of {num_images} images cannot be read (first: {missing[0][0]}: {missing[0][1]}); "
            f"all are listed in {report}; skip_bad (--skip-bad) keeps the rest"
        )


def _check_classes_left(images: Source, labels: Any, plan: dict[str, Any], some_missing: bool) -> None:
    if some_missing and plan["shard"] == [1, 1]:
        before = np.bincount(images.labels, minlength=len(images.class_names))
        counts = np.bincount(labels, minlength=len(images.class_names))
        lost = np.flatnonzero((before > 0) & (counts == 0))
        if len(lost):
            raise ValueError(f"class {images.class_names[lost[0]]!r} has no image that can be read")

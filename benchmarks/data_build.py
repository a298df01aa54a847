"""Is the decoder the limit of building, and which decoder?

JPEGs of 500x375, about 110 kB each as ImageNet's, are decoded on all cores by each library alone, whole and to RGB: a few
of them from memory again and again, and, the like-for-like other side of a build, all of them from the same folder's
files, in as many processes that share them out as a build does. Then they are built into 128x128 files by every resize.
All files are in the page cache. Every round does all of this in turns, and a build is set against the decoders of its own
round; medians of the rounds count. The clock holds all of a build: the start of its processes, the list, the checks. CPU
time is disturbed less by other work on the machine. The kernel's part of it is told apart: a build needs memory for a new
file, which a virtual machine may first have to get from its host. A quarter of the images is built too: a file so small goes
through the page cache, the whole past it.
Least disturbed is the first comparison: what one decoding process does, block by block, against its decoder alone.

    python benchmarks/data_build.py
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# One thread and kept buffers in this process, as in the builder's.
_SETTINGS = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
}
if any(name not in os.environ for name in _SETTINGS):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**_SETTINGS, **os.environ})

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from hamgan.data.build import build, num_cores  # noqa: E402
from hamgan.data.crop_jpeg import square_decoder  # noqa: E402
from hamgan.data.folder import FileReader  # noqa: E402
from hamgan.data.resample import resize_square  # noqa: E402
from hamgan.data.worker import BlockBuilder, Job  # noqa: E402

QUICK = ["--images", "1000", "--rounds", "2", "--resizes", "lanczos", "tfgan"]
DISTINCT = 64
BLOCK = 64  # files that a process takes at a time, as a build's
BUFFER = np.empty((375, 500, 3), np.uint8)  # used again for every image, where a library can


def photo(seed: int) -> bytes:
    """A JPEG of noise with a natural spectrum (amplitude 1/f), 500x375."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(375)[:, None], np.fft.fftfreq(500)[None])
    frequency[0, 0] = 1
    shared = rng.normal(size=(375, 500))
    channels = []
    for _ in range(3):
        spectrum = np.fft.fft2(0.8 * shared + 0.5 * rng.normal(size=(375, 500))) / frequency
        channel = np.fft.ifft2(spectrum).real
        channels.append((channel - channel.mean()) / channel.std())
    pixels = np.clip(np.stack(channels, -1) * 50 + 120, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85 + 7 * (seed % 2))
    return buffer.getvalue()


def pillow(data: bytes) -> object:
    """Decode with Pillow, without the copy into an array."""
    return Image.open(io.BytesIO(data)).load()


def with_simplejpeg(data: bytes) -> object:
    """Decode with simplejpeg."""
    import simplejpeg

    return simplejpeg.decode_jpeg(data, "RGB", buffer=BUFFER)


def with_opencv(data: bytes) -> object:
    """Decode with OpenCV."""
    import cv2

    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def with_torchvision(data: bytes) -> object:
    """Decode with torchvision."""
    import torch
    from torchvision.io import decode_jpeg

    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))


DECODERS: dict[str, Callable[[bytes], object]] = {
    "Pillow": pillow,
    "simplejpeg": with_simplejpeg,
    "opencv": with_opencv,
    "torchvision": with_torchvision,
}


def decode_many(
    name: str, source: list[bytes] | list[str], root: str, count: int, taken: Any, ready: Any, results: Any
) -> None:
    """Decode blocks of images in one process until all are taken, and report the seconds by the clock and of CPU.

    `source` holds encoded images, or paths below `root`.
    """
    decode, read = DECODERS[name], FileReader(root).read
    try:
        for item in source[:4]:
            decode(read(item) if isinstance(item, str) else item)
    except ImportError:
        results.put(None)
        return
    ready.wait()
    started, before = time.perf_counter(), cpu_seconds(resource.RUSAGE_SELF)
    while True:
        with taken.get_lock():
            first = taken.value
            taken.value += BLOCK
        if first >= count:
            break
        for i in range(first, min(first + BLOCK, count)):
            item = source[i % len(source)]
            decode(read(item) if isinstance(item, str) else item)
    clock = time.perf_counter() - started
    results.put((clock, *(a - b for a, b in zip(cpu_seconds(resource.RUSAGE_SELF), before, strict=True))))


def cpu_seconds(*whose: int) -> tuple[float, float]:
    """Return the CPU seconds of processes so far, and those but the kernel's."""
    used = [resource.getrusage(who) for who in whose]
    return sum(u.ru_utime + u.ru_stime for u in used), sum(u.ru_utime for u in used)


class Cost(NamedTuple):
    """What an image costs: seconds by the clock on all cores, and of CPU in all processes, with and without the kernel's."""

    clock: float
    cpu: float
    user: float


def decoder_cost(name: str, source: list[bytes] | list[str], root: Path, count: int) -> Cost | None:
    """Time a decoder alone on all cores; None if it is not installed."""
    context = multiprocessing.get_context("spawn")
    cores = num_cores()
    taken, ready, results = context.Value("q", 0), context.Barrier(cores), context.Queue()
    arguments = (name, source, str(root), count, taken, ready, results)
    processes = [context.Process(target=decode_many, args=arguments) for _ in range(cores)]
    for process in processes:
        process.start()
    seconds = [results.get() for _ in processes]
    for process in processes:
        process.join()
    if None in seconds:
        return None
    clocks, cpus, users = zip(*seconds, strict=True)
    return Cost(max(clocks) / count, sum(cpus) / count, sum(users) / count)


def build_cost(root: Path, num_images: int, out: Path, resize: str) -> Cost:
    """Time a build with all that belongs to it; return what its images cost together."""
    out.unlink(missing_ok=True)
    os.sync()  # what was written before must not be on its way to the disk meanwhile
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    before = cpu_seconds(*both)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        summary = build(root, out, resolution=128, resize=resize)
    assert summary.num_images == num_images
    return Cost(summary.seconds, *(a - b for a, b in zip(cpu_seconds(*both), before, strict=True)))


def time_resizes(data: bytes, resizes: list[str]) -> None:
    """Print what a resize to 128x128 alone takes on one core."""
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    crop = Image.fromarray(pixels).crop((62, 0, 437, 375))
    for resize in resizes:
        costs = []
        for _ in range(200):
            started = time.perf_counter()
            resize_square(pixels, 128, resize)
            middle = time.perf_counter()
            if resize != "tfgan":
                crop.resize((128, 128), getattr(Image.Resampling, resize.upper()))
            costs.append((middle - started, time.perf_counter() - middle))
        ours, theirs = (min(cost[i] for cost in costs) * 1e3 for i in (0, 1))
        print(
            f"resize alone, {resize:9} {ours:5.2f} ms" + (f", Pillow's {theirs:5.2f} ms" if resize != "tfgan" else "")
        )


def time_one_process(photos: list[bytes], resizes: list[str]) -> None:
    """Print the CPU time of a decoding process's blocks and of the decoders alone, the best of many rounds of 64 images."""

    def milliseconds(call: Callable[[], object]) -> float:
        costs = []
        for _ in range(16):
            started = time.process_time()
            call()
            costs.append(time.process_time() - started)
        return min(costs) / len(photos) * 1e3

    alone = {}
    for name in ("simplejpeg", "Pillow"):
        with contextlib.suppress(ImportError):
            alone[name] = milliseconds(lambda decode=DECODERS[name]: [decode(data) for data in photos])  # type: ignore[misc]
            print(f"one core, {name} alone: {alone[name]:.2f} ms per image")
    with tempfile.TemporaryDirectory() as name:
        for i, data in enumerate(photos):
            (Path(name) / f"{i}.jpg").write_bytes(data)
        (Path(name) / "data").write_bytes(bytes(len(photos) * 128 * 128 * 3))
        names = [f"{i}.jpg" for i in range(len(photos))]
        for resize in resizes:
            job = Job(
                reader=FileReader(name), data_path=Path(name) / "data", offset=0, resolution=128, resize=resize,
                background=(255, 255, 255), direct=True,
            )  # fmt: skip
            builder = BlockBuilder(job)
            cost = milliseconds(lambda builder=builder: builder.build(0, names))  # type: ignore[misc]
            builder.close()
            against = ", ".join(f"{alone[name] / cost:.2f} of {name} alone" for name in alone)
            print(f"one core, read + decode + {resize:9} + write: {cost:.2f} ms per image: {against}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16_000)
    parser.add_argument("--rounds", type=int, default=3, help="medians count")
    parser.add_argument("--resizes", nargs="+", default=["lanczos", "bilinear", "box", "tfgan"])
    options = parser.parse_args()
    photos = [photo(seed) for seed in range(DISTINCT)]
    size = np.mean([len(data) for data in photos]) / 1e3
    squares = "squares alone are decoded" if square_decoder() is not None else "whole images are decoded"
    print(f"{options.images} JPEGs of 500x375, {size:.0f} kB each, {num_cores()} cores; in builds {squares}")
    time_one_process(photos, options.resizes)
    time_resizes(photos[0], options.resizes)
    with tempfile.TemporaryDirectory() as name:
        all_photos, few_photos = Path(name) / "photos", Path(name) / "few"
        for i in range(options.images):
            place = Path(f"class{i * 10 // options.images}") / f"{i:06d}.jpg"
            (all_photos / place).parent.mkdir(parents=True, exist_ok=True)
            (all_photos / place).write_bytes(photos[i % DISTINCT])
            if i // DISTINCT % 4 == 0:  # as the whole: every photo as often
                (few_photos / place).parent.mkdir(parents=True, exist_ok=True)
                os.link(all_photos / place, few_photos / place)
        compare(photos, all_photos, few_photos, options)


def compare(photos: list[bytes], all_photos: Path, few_photos: Path, options: argparse.Namespace) -> None:
    """Decode and build in turns, so that all meet the same disturbances, and print the medians."""
    names = [str(path.relative_to(all_photos)) for path in sorted(all_photos.rglob("*.jpg"))]
    num_all, num_few = len(names), sum(path.is_file() for path in few_photos.rglob("*"))
    alone: dict[str, list[Cost]] = {}
    built: dict[tuple[str, str], list[Cost]] = {}
    ratios: dict[tuple[str, str, str], list[Cost]] = {}
    out = all_photos.with_name("out.h5")
    for number in range(options.rounds):
        now: dict[str, Cost] = {}
        for decoder in DECODERS:
            for source, count in ((names, len(names)), (photos, min(len(names), 4_000))):
                where = f"{decoder}, {'from files' if source is names else 'from memory'}"
                if (cost := decoder_cost(decoder, source, all_photos, count)) is not None:
                    now[where] = cost
                    alone.setdefault(where, []).append(cost)
        for resize in options.resizes:
            few = build_cost(few_photos, num_few, out, resize)
            whole = build_cost(all_photos, num_all, out, resize)
            for label, cost in (
                (f"of {num_few}", Cost(*(seconds / num_few for seconds in few))),
                (f"of {num_all}", Cost(*(seconds / num_all for seconds in whole))),
            ):
                built.setdefault((resize, label), []).append(cost)
                for where, decoded in now.items():
                    ratio = Cost(*(a / b for a, b in zip(decoded, cost, strict=True)))
                    ratios.setdefault((resize, label, where), []).append(ratio)
            print(
                f"round {number + 1}: build, {resize}, of {num_all}: {num_all / whole.clock:.0f} images/s", flush=True
            )
    for where, costs in alone.items():
        clock, cpu, user = (seconds * 1e3 for seconds in medians(costs))
        print(
            f"decoder alone, {where:24} {1e3 / clock:6.0f} images/s  {cpu:5.2f} ms CPU per image, kernel {cpu - user:.2f}"
        )
    fastest = min((where for where in alone if "files" in where), key=lambda where: medians(alone[where]).clock)
    for (resize, label), costs in built.items():
        clock, cpu, user = (seconds * 1e3 for seconds in medians(costs))
        print(
            f"build, {resize:9} {label:18} {1e3 / clock:6.0f} images/s  {cpu:5.2f} ms CPU per image, kernel {cpu - user:.2f}"
        )
        for where in alone:
            if where == fastest or not where.startswith("opencv"):
                of = ratios[resize, label, where]
                target = " (target 0.9)" if where == fastest and label != f"of {num_few}" else ""
                span = f"{min(ratio.clock for ratio in of):.3f} to {max(ratio.clock for ratio in of):.3f}"
                ratio = medians(of)
                print(
                    f"    {ratio.clock:.3f} ({span}; CPU {ratio.cpu:.3f}, but the kernel's {ratio.user:.3f}) of {where}{target}"
                )


def medians(costs: list[Cost]) -> Cost:
    """Return the medians of the times by the clock and of the CPU times."""
    return Cost(*(statistics.median(values) for values in zip(*costs, strict=True)))


if __name__ == "__main__":
    main()

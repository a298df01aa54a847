"""Is the decoder the limit of building, and which decoder?

JPEGs of 500x375, about 110 kB each as ImageNet's, decoded on all cores by each library alone (from memory, to RGB),
then built into 128x128 files by every resize. Prints each build against the decoders alone: by the clock, with the
start of the processes, the list, the checks and all; and by CPU time, which other work on the machine disturbs less.
Least disturbed is the first comparison: what one decoding process does, block by block, against its decoder alone.

    python benchmarks/data_build.py
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

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
from hamgan.data.folder import FileReader  # noqa: E402
from hamgan.data.resample import resize_square  # noqa: E402
from hamgan.data.worker import BlockBuilder, Job  # noqa: E402

QUICK = ["--images", "1000", "--rounds", "2", "--resizes", "lanczos", "tfgan"]
DISTINCT = 64


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

    return simplejpeg.decode_jpeg(data, "RGB")


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


def decode_many(name: str, photos: list[bytes], count: int, ready: object, results: object) -> None:
    """Decode so many images in one process and report the seconds by the clock and of CPU."""
    decode = DECODERS[name]
    try:
        for data in photos[:4]:
            decode(data)
    except ImportError:
        results.put(None)  # type: ignore[attr-defined]
        return
    ready.wait()  # type: ignore[attr-defined]
    started, cpu = time.perf_counter(), time.process_time()
    for i in range(count):
        decode(photos[i % len(photos)])
    results.put((time.perf_counter() - started, time.process_time() - cpu))  # type: ignore[attr-defined]


def decoder_cost(name: str, photos: list[bytes], count: int) -> tuple[float, float] | None:
    """Return (images/s on all cores, CPU seconds per image) of a decoder alone; None if it is not installed."""
    context = multiprocessing.get_context("spawn")
    cores = num_cores()
    each = count // cores
    ready, results = context.Barrier(cores), context.Queue()
    arguments = (name, photos, each, ready, results)
    processes = [context.Process(target=decode_many, args=arguments) for _ in range(cores)]
    for process in processes:
        process.start()
    seconds = [results.get() for _ in processes]
    for process in processes:
        process.join()
    if None in seconds:
        return None
    return each * cores / max(wall for wall, _ in seconds), sum(cpu for _, cpu in seconds) / (each * cores)


def build_cost(root: Path, out: Path, resize: str) -> tuple[float, float]:
    """Return (images/s, CPU seconds per image) of a build with all that belongs to it."""

    def cpu_seconds() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in used)

    out.unlink(missing_ok=True)
    before = cpu_seconds()
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        summary = build(root, out, resolution=128, resize=resize)
    return summary.num_images / summary.seconds, (cpu_seconds() - before) / summary.num_images


def best(costs: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the highest rate and the lowest CPU time."""
    return max(rate for rate, _ in costs), min(cpu for _, cpu in costs)


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
                background=(255, 255, 255),
            )  # fmt: skip
            builder = BlockBuilder(job)
            cost = milliseconds(lambda builder=builder: builder.build(0, names))  # type: ignore[misc]
            builder.close()
            against = ", ".join(f"{alone[name] / cost:.2f} of {name} alone" for name in alone)
            print(f"one core, read + decode + {resize:9} + write: {cost:.2f} ms per image: {against}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6_000)
    parser.add_argument("--rounds", type=int, default=3, help="the best counts")
    parser.add_argument("--resizes", nargs="+", default=["lanczos", "bilinear", "box", "tfgan"])
    options = parser.parse_args()
    photos = [photo(seed) for seed in range(DISTINCT)]
    size = np.mean([len(data) for data in photos]) / 1e3
    print(f"{options.images} JPEGs of 500x375, {size:.0f} kB each, {num_cores()} cores")
    time_one_process(photos, options.resizes)
    alone: dict[str, tuple[float, float]] = {}
    for name in DECODERS:
        costs = [decoder_cost(name, photos, options.images) for _ in range(options.rounds)]
        if None not in costs:
            alone[name] = best([cost for cost in costs if cost is not None])
            print(
                f"decoder alone, {name:12} {alone[name][0]:6.0f} images/s  {alone[name][1] * 1e3:5.2f} ms CPU per image"
            )
    time_resizes(photos[0], options.resizes)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "photos"
        for i in range(options.images):
            folder = root / f"class{i * 10 // options.images}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:06d}.jpg").write_bytes(photos[i % DISTINCT])
        for resize in options.resizes:
            rate, cpu = best([build_cost(root, Path(name) / "out.h5", resize) for _ in range(options.rounds)])
            against = ", ".join(
                f"{rate / alone[decoder][0]:.2f} (CPU {alone[decoder][1] / cpu:.2f}) of {decoder} alone"
                for decoder in ("simplejpeg", "Pillow")
                if decoder in alone
            )
            print(f"build, {resize:9} {rate:6.0f} images/s  {cpu * 1e3:5.2f} ms CPU per image: {against} (target 0.9)")


if __name__ == "__main__":
    main()

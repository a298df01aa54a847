"""Is the decoder the limit of building, and which decoder?

JPEGs of 500x375, about 110 kB each as ImageNet's, decoded on all cores by each library alone (from memory, to RGB),
then built into 128x128 files by every resize, in turns. Prints each build against the decoders alone: by the clock,
with the start of the processes, the list, the checks and all; and by CPU time, which other work on the machine disturbs
less. A quarter of the images is built too: what the other three quarters add to its time is the rate of a build that is
so long that its start no longer counts, and what remains is its fixed cost.
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
from typing import NamedTuple

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


class Cost(NamedTuple):
    """What a number of images cost on all cores: seconds by the clock, and CPU seconds of all processes."""

    clock: float
    cpu: float


def decoder_cost(name: str, photos: list[bytes], count: int) -> Cost | None:
    """Time a decoder alone on all cores; None if it is not installed."""
    context = multiprocessing.get_context("spawn")
    cores = num_cores()
    ready, results = context.Barrier(cores), context.Queue()
    arguments = (name, photos, count // cores, ready, results)
    processes = [context.Process(target=decode_many, args=arguments) for _ in range(cores)]
    for process in processes:
        process.start()
    seconds = [results.get() for _ in processes]
    for process in processes:
        process.join()
    if None in seconds:
        return None
    return Cost(max(clock for clock, _ in seconds), sum(cpu for _, cpu in seconds))


def build_cost(root: Path, out: Path, resize: str) -> Cost:
    """Time a build with all that belongs to it."""

    def cpu_seconds() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in used)

    out.unlink(missing_ok=True)
    os.sync()  # what was written before must not be on its way to the disk meanwhile
    before = cpu_seconds()
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        summary = build(root, out, resolution=128, resize=resize)
    return Cost(summary.seconds, cpu_seconds() - before)


def best(costs: list[Cost]) -> Cost:
    """Return the least time by the clock and the least CPU time."""
    return Cost(min(cost.clock for cost in costs), min(cost.cpu for cost in costs))


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
    parser.add_argument("--images", type=int, default=16_000)
    parser.add_argument("--rounds", type=int, default=3, help="the best counts")
    parser.add_argument("--resizes", nargs="+", default=["lanczos", "bilinear", "box", "tfgan"])
    options = parser.parse_args()
    photos = [photo(seed) for seed in range(DISTINCT)]
    size = np.mean([len(data) for data in photos]) / 1e3
    print(f"{options.images} JPEGs of 500x375, {size:.0f} kB each, {num_cores()} cores")
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
    """Decode and build in turns, so that all meet the same disturbances, and print the best of each."""
    decoded = min(options.images, 4_000) // num_cores() * num_cores()
    alone: dict[str, list[Cost]] = {}
    few: dict[str, list[Cost]] = {}
    whole: dict[str, list[Cost]] = {}
    out = all_photos.with_name("out.h5")
    for number in range(options.rounds):
        for decoder in DECODERS:
            if (cost := decoder_cost(decoder, photos, decoded)) is not None:
                alone.setdefault(decoder, []).append(cost)
        for resize in options.resizes:
            few.setdefault(resize, []).append(build_cost(few_photos, out, resize))
            whole.setdefault(resize, []).append(build_cost(all_photos, out, resize))
        seconds = ", ".join(f"{name} {costs[-1].clock:.2f} s" for name, costs in (alone | whole).items())
        print(f"round {number + 1}: {seconds}", file=sys.stderr, flush=True)
    for decoder, costs in alone.items():
        clock, cpu = (seconds / decoded for seconds in best(costs))
        print(f"decoder alone, {decoder:12} {1 / clock:6.0f} images/s  {cpu * 1e3:5.2f} ms CPU per image")
    num_all, num_few = (sum(path.is_file() for path in root.rglob("*")) for root in (all_photos, few_photos))
    for resize in options.resizes:
        large, small = best(whole[resize]), best(few[resize])
        steady = Cost(*(a - b for a, b in zip(large, small, strict=True)))
        for label, count, cost in (
            (f"of {num_few}", num_few, small),
            (f"of {num_all}", num_all, large),
            ("without its start", num_all - num_few, steady),
        ):
            clock, cpu = cost.clock / count, cost.cpu / count
            against = ", ".join(
                f"{decoded_cost.clock / decoded / clock:.3f} (CPU {decoded_cost.cpu / decoded / cpu:.3f}) of {decoder} alone"
                for decoder, decoded_cost in ((name, best(costs)) for name, costs in alone.items())
                if decoder != "opencv"
            )
            print(
                f"build, {resize:9} {label:18} {1 / clock:6.0f} images/s  {cpu * 1e3:5.2f} ms CPU per image: {against}"
            )
        start = small.clock - steady.clock / (num_all - num_few) * num_few
        print(f"build, {resize:9} fixed cost {start:.2f} s (target 0.9 of the fastest decoder)")


if __name__ == "__main__":
    main()

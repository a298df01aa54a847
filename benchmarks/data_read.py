"""How fast do random batches come out of a warm training file?

Three sides in one run, on the same images: a reader that does what BigGAN-PyTorch's does (h5py, chunks of 500
images, the file reopened and one image read and turned into a float tensor at each access), ours, and memcpy of the
same bytes on one core. Also ours against h5py on other layouts, which is how the layout was chosen.

    python benchmarks/data_read.py
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch

from hamgan.data import format as file_format
from hamgan.data.format import Header
from hamgan.data.hdf5 import TrainingFile
from hamgan.data.loader import BatchLoader
from hamgan.data.sampler import ShuffledSampler
from hamgan.data.staging import seal

QUICK = ["--images", "5120", "--seconds", "2"]


def write_files(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write the same images as ours, as BigGAN-PyTorch's, and in blocks of 64."""
    resolution = images.shape[1]
    header = Header(
        resolution=resolution, labels=labels, class_names=tuple(map(str, range(labels.max() + 1))),
        block_crc32=np.zeros(file_format.num_blocks(len(labels)), np.uint32), resize="none",
        background=(255, 255, 255), source="noise", source_fingerprint="0" * 64,
    )  # fmt: skip
    _, start, _ = file_format.lay_out(len(labels), resolution, None)
    with open(folder / "ours.h5", "w+b") as file:
        file.seek(start)
        file.write(images.data)
        file.flush()
        seal(folder / "ours.h5", file.fileno(), header)
    nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    with h5py.File(folder / "biggan.hdf5", "w") as file:
        file.create_dataset(
            "imgs", data=nchw, chunks=(500, 3, resolution, resolution), maxshape=(None, *nchw.shape[1:])
        )
        file["labels"] = labels
    with h5py.File(folder / "blocks.h5", "w") as file:
        file.create_dataset("images", data=images, chunks=(64, *images.shape[1:]))


def biggan_read(path: Path, index: int) -> torch.Tensor:
    """Read one image as BigGAN-PyTorch's data set does."""
    with h5py.File(path, "r") as file:
        image, _ = file["imgs"][index], file["labels"][index]
    return (torch.from_numpy(image).float() / 255 - 0.5) * 2


def rate(read: Callable[[int], object], images_per_call: int, seconds: float) -> float:
    """Images per second, the best of three stretches."""
    best = 0.0
    call = 0
    for _ in range(3):
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < seconds / 3:
            read(call)
            call += 1
            done += images_per_call
        best = max(best, done / (time.perf_counter() - started))
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_240)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=3.0, help="per measurement")
    parser.add_argument("--folder", type=Path, default=None, help="where the files go; a temporary folder if left out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size, batch, seconds = options.resolution, options.batch_size, options.seconds
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (options.images, size, size, 3), np.uint8)
    labels = np.sort(rng.integers(0, 10, options.images))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_files(folder, images, labels)
        order = [rng.integers(0, options.images, batch) for _ in range(64)]
        out = np.empty((batch, size, size, 3), np.uint8)
        file = TrainingFile(folder / "ours.h5")
        foreign = TrainingFile(folder / "biggan.hdf5")
        for f in (file, foreign):  # warm
            f.read(np.arange(options.images))
        blocks = h5py.File(folder / "blocks.h5", "r")["images"]
        contiguous = h5py.File(folder / "ours.h5", "r")["images"]
        firsts = [int(i) for i in rng.integers(0, options.images - batch, 64)]
        with BatchLoader(file, ShuffledSampler(options.images, 0), batch_size=batch) as loader:
            from_loader = rate(lambda _: next(loader), batch, seconds)
        rates = {
            "as BigGAN-PyTorch reads": rate(lambda i: biggan_read(folder / "biggan.hdf5", i * 7919 % len(images)), 1, seconds),
            "h5py, blocks of 64, sorted batch": rate(lambda i: blocks[np.unique(order[i % 64])], batch, seconds),
            "h5py, contiguous, sorted batch": rate(lambda i: contiguous[np.unique(order[i % 64])], batch, seconds),
            "ours, a BigGAN-PyTorch file": rate(lambda i: foreign.read(order[i % 64], out), batch, seconds),
            "ours, random batches": rate(lambda i: file.read(order[i % 64], out), batch, seconds),
            "ours, through BatchLoader": from_loader,
            "memcpy, one core": rate(lambda i: np.copyto(out, images[firsts[i % 64] :][:batch]), batch, seconds),
        }  # fmt: skip
        for what, value in rates.items():
            print(f"{what:36} {value:10.0f} images/s  {value * images[0].nbytes / 1e9:7.2f} GB/s")
        theirs, copy = rates["as BigGAN-PyTorch reads"], rates["memcpy, one core"]
        for what in ("ours, random batches", "ours, through BatchLoader"):
            print(f"{what}: {rates[what] / theirs:.0f} times BigGAN-PyTorch's reader (target 30), "
                  f"{rates[what] / copy:.2f} of memcpy (target 0.5)")  # fmt: skip


if __name__ == "__main__":
    main()

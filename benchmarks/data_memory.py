"""Does memory stay constant in the number of images, and what does ImageNet's 1.28 million take?

Reading and sampling: a training file of so many images whose pixels are a hole (no disk needed) is opened, labels,
permutation and all, and batches are drawn. Building: the list of so many images is held as a folder's, and the peak
of a builder and its processes is taken at two sizes of a small data set.

    python benchmarks/data_memory.py
"""

import argparse
import contextlib
import io
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from hamgan.data import format as file_format
from hamgan.data.format import Header
from hamgan.data.hdf5 import TrainingFile
from hamgan.data.loader import BatchLoader
from hamgan.data.sampler import ShuffledSampler
from hamgan.data.source import Keys
from hamgan.data.staging import seal

# Not ru_maxrss, which remembers what the process was forked from.
PEAK = """
def PEAK():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
BUILD = """
import resource, sys
from hamgan.data.build import build
build(sys.argv[1], sys.argv[2], resolution=64, workers=2)
print(PEAK(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
VERIFY = """
import sys
from hamgan.data.verify import verify
verify(sys.argv[1])
print(PEAK())
"""


def private_mb() -> float:
    """Memory of this process that is its own (not the page cache mapped into it), MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def run(script: str, *arguments: str) -> list[int]:
    """Run a script in a fresh process; return the numbers of its last line."""
    done = subprocess.run([sys.executable, "-c", PEAK + script, *arguments], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.splitlines()[-1].split()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_281_167)
    options = parser.parse_args()
    n = options.images
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        path = Path(name) / "hole.h5"
        labels = np.arange(n) % 1000
        header = Header(
            resolution=128, labels=labels, class_names=tuple(f"n{i:08d}" for i in range(1000)),
            block_crc32=np.zeros(file_format.num_blocks(n), np.uint32), resize="none", background=(0, 0, 0),
            source="hole", source_fingerprint="0" * 64,
        )  # fmt: skip
        with open(path, "w+b") as target:
            seal(path, target.fileno(), header)
        del header, labels
        before = private_mb()
        file = TrainingFile(path)
        sampler = ShuffledSampler(n, seed=0)
        sampler.indices(0, 256)
        sampled = private_mb()
        with BatchLoader(file, sampler, batch_size=256) as loader:
            for _ in range(50):
                next(loader)
            loaded = private_mb()
        print(
            f"{n} images: open file and permutation {sampled - before:.0f} MB, batches of 256 {loaded - sampled:.0f} MB"
        )
        before = private_mb()
        keys = Keys()
        for i in range(n):
            keys.append(f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG")
        print(f"{n} images: the builder's list of names {private_mb() - before:.0f} MB")
        for count in (2_000, 8_000):
            root = Path(name) / f"pictures{count}"
            picture = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "JPEG")
            (root / "a").mkdir(parents=True)
            for i in range(count):
                (root / "a" / f"{i}.jpg").write_bytes(buffer.getvalue())
            out = Path(name) / f"{count}.h5"
            builder, process = run(BUILD, str(root), str(out))
            [verifier] = run(VERIFY, str(out))
            print(f"{count} images of 64x64 ({os.path.getsize(out) / 1e6:.0f} MB): builder {builder / 1e3:.0f} MB, "
                  f"each process {process / 1e3:.0f} MB, verify {verifier / 1e3:.0f} MB")  # fmt: skip


if __name__ == "__main__":
    main()

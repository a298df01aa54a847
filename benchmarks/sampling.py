"""How much of the bare network's throughput is left when images go to a folder or an archive, and in how much memory?

Both sides in one run, in turns: `G(z, y)` on latents that are there already, at the batch size that sampling uses and at a
larger one; and `hamgan.sampling.store`, which draws latents by seed, encodes, and writes. Above 0.8 is the target. Memory is
the peak of a process that writes an archive, for some images and for four times as many.

Run: python benchmarks/sampling.py [SNAPSHOT]   (default: the generator of configs/emoji32.toml, untrained)
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hamgan import snapshot
from hamgan.models.generator import Generator
from hamgan.sampling.draw import CHUNK
from hamgan.sampling.store import SampleList, write_folder, write_npz
from hamgan.training.config import load_config

IMAGES = 2_000  # a round
ROUNDS = 5  # 10,000 images of each kind
LARGE_BATCH = 64
FEW = 1_000  # images of the memory measurement


def generator(path: str | None) -> Generator:
    """Return the generator that is measured."""
    if path is not None:
        return snapshot.read(snapshot.find(Path(path))).generator
    torch.manual_seed(0)
    preset = Path(__file__).parent.parent / "configs" / "emoji32.toml"
    return Generator(load_config(preset).generator).eval().requires_grad_(False)


@torch.inference_mode()
def bare(G: Generator, batch: int) -> None:
    """Draw IMAGES images and throw them away."""
    z, y = torch.randn(batch, G.config.z_dim), torch.arange(batch) % G.config.num_classes
    for _ in range(IMAGES // batch):
        G(z, y)


def samples(G: Generator, count: int) -> SampleList:
    """Return a list of images."""
    return SampleList(seeds=range(count), labels=[i % G.config.num_classes for i in range(count)])


def rate(run: Callable[[], object], count: int) -> float:
    """Return images a second."""
    start = time.perf_counter()
    run()
    return count / (time.perf_counter() - start)


def peak_memory(count: int, path: str | None) -> float:
    """Return the peak memory of a process that writes an archive, MB."""
    command = [sys.executable, __file__, "--archive", str(count), *([path] if path else [])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def write_archive(count: int, path: str | None) -> None:
    """Write an archive and print this process's peak memory, MB."""
    G = generator(path)
    with tempfile.TemporaryDirectory() as folder:
        write_npz(G, samples(G, count), Path(folder) / "s.npz", progress=False)
    # Not ru_maxrss, which remembers what the process was forked from.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) / 1024)


def main(path: str | None) -> None:
    """Print rates, ratios and memory."""
    G = generator(path)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as root:
        for turn in range(ROUNDS):
            chosen = samples(G, IMAGES)
            folder, archive = Path(root) / f"folder{turn}", Path(root) / f"{turn}.npz"
            for name, run, count in (
                (f"bare, batch {CHUNK}", lambda: bare(G, CHUNK), IMAGES // CHUNK * CHUNK),
                (f"bare, batch {LARGE_BATCH}", lambda: bare(G, LARGE_BATCH), IMAGES // LARGE_BATCH * LARGE_BATCH),
                ("folder", lambda: write_folder(G, chosen, folder, progress=False), IMAGES),  # noqa: B023
                ("npz", lambda: write_npz(G, chosen, archive, progress=False), IMAGES),  # noqa: B023
            ):
                rates.setdefault(name, []).append(rate(run, count))
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians of {ROUNDS} rounds of {IMAGES} images"
    )
    medians = {name: statistics.median(values) for name, values in rates.items()}
    first, second = list(medians)[:2]
    print(f"{'':16} {'images/s':>9} {'/ ' + first:>16} {'/ ' + second:>16}")
    for name, value in medians.items():
        print(f"{name:16} {value:9.0f} {value / medians[first]:16.2f} {value / medians[second]:16.2f}")
    few, many = peak_memory(FEW, path), peak_memory(4 * FEW, path)
    print(f"peak memory writing {FEW} images {few:.0f} MB, {4 * FEW} images {many:.0f} MB: {many - few:+.0f} MB")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["--archive"]:
        write_archive(int(arguments[1]), arguments[2] if len(arguments) > 2 else None)
    else:
        main(arguments[0] if arguments else None)

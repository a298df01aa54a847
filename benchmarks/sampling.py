"""How much of the bare network's throughput is left when images go to a folder, an archive or a picture, in how much memory?

Both sides in one run, in turns: `G(z, y)` on latents that are there already, at the batch size that sampling uses and at a
larger one; and `hamgan.sampling.store`, which draws latents by seed, encodes, and writes. What a folder costs depends on what
the file system takes for a new file, so it is written in memory too, where there is such a place. Above 0.8 is the target.
Memory is the peak of a process that writes an archive, for some images and for four times as many.

Then the command: `hamgan sample` of 64 images at 128x128 (configs/imagenet128_biggan.toml, width 32, untrained) into a picture,
against the forward passes alone, at whichever batch size is faster; with the process's start and without it (the command called
in a process that has imported all of it; the snapshot is read in both). At most 1.3 times is the target.

Run: python benchmarks/sampling.py [SNAPSHOT] [--images N] [--rounds N]   (default: configs/emoji32.toml's generator, untrained)
"""

import argparse
import contextlib
import io
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measure import seconds, status_mb, take_turns

from hamgan import cli, snapshot
from hamgan.models.generator import Generator
from hamgan.sampling.draw import CHUNK
from hamgan.sampling.store import SampleList, write_folder, write_npz
from hamgan.training.config import load_config

QUICK = ["--images", "1000", "--rounds", "2"]
LARGE_BATCH = 64
FEW = 1_000  # images of the memory measurement
MEMORY = Path("/dev/shm")  # where a file costs next to nothing: what is left is hamgan's share
CONFIGS = Path(__file__).parents[1] / "configs"
COMMAND_IMAGES = 64
COMMAND_ROUNDS = 5
COMMAND_TARGET = 1.3


def untrained(preset: str, *overrides: str) -> Generator:
    """Return a preset's generator with random weights."""
    torch.manual_seed(0)
    return Generator(load_config(CONFIGS / preset, overrides).generator).eval().requires_grad_(False)


def generator(path: Path | None) -> Generator:
    """Return the generator whose images are stored."""
    return untrained("emoji32.toml") if path is None else snapshot.read(snapshot.find(path)).generator


@torch.inference_mode()
def bare(G: Generator, batch: int, count: int) -> None:
    """Draw so many images and throw them away."""
    z, y = torch.randn(batch, G.config.z_dim), torch.arange(batch) % G.config.num_classes
    for _ in range(count // batch):
        G(z, y)


def samples(G: Generator, count: int) -> SampleList:
    """Return a list of images."""
    return SampleList(seeds=range(count), labels=[i % G.config.num_classes for i in range(count)])


def peak_memory(count: int, path: Path | None) -> float:
    """Return the peak memory of a process that writes an archive, MB."""
    command = [sys.executable, __file__, *([str(path)] if path else []), "--archive", str(count)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def write_archive(G: Generator, count: int) -> None:
    """Write an archive and print this process's peak memory, MB."""
    with tempfile.TemporaryDirectory() as folder:
        write_npz(G, samples(G, count), Path(folder) / "s.npz", progress=False)
    print(status_mb("VmHWM"))


def compare_stores(path: Path | None, images: int, rounds: int) -> None:
    """Print rates, ratios and memory of folders and archives."""
    G = generator(path)
    rates: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory() as root,
        tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as memory,
    ):
        for turn in range(rounds):
            chosen = samples(G, images)
            folder, archive = Path(root) / f"folder{turn}", Path(root) / f"{turn}.npz"
            sides: dict[str, tuple[Callable[[], object], int]] = {
                f"bare, batch {batch}": (partial(bare, G, batch, images), images // batch * batch)
                for batch in (CHUNK, LARGE_BATCH)
            }
            sides["folder"] = (partial(write_folder, G, chosen, folder, progress=False), images)
            if MEMORY.is_dir():
                sides["folder in memory"] = (
                    partial(write_folder, G, chosen, Path(memory) / str(turn), progress=False),
                    images,
                )
            sides["npz"] = (partial(write_npz, G, chosen, archive, progress=False), images)
            for name, (run, count) in sides.items():
                rates.setdefault(name, []).append(count / seconds(run))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    first, second = list(medians)[:2]
    print(f"medians of {rounds} rounds of {images} images")
    print(f"{'':16} {'images/s':>9} {'/ ' + first:>16} {'/ ' + second:>16}")
    for name, value in medians.items():
        print(f"{name:16} {value:9.0f} {value / medians[first]:16.2f} {value / medians[second]:16.2f}")
    few, many = peak_memory(FEW, path), peak_memory(4 * FEW, path)
    print(f"peak memory writing {FEW} images {few:.0f} MB, {4 * FEW} images {many:.0f} MB: {many - few:+.0f} MB")


def compare_command() -> None:
    """Print what `hamgan sample` takes against the forward passes."""
    with tempfile.TemporaryDirectory() as root:
        path, out = Path(root) / "G.safetensors", Path(root) / "samples.png"
        G = untrained("imagenet128_biggan.toml", "--generator.channels=32", "--discriminator.channels=32")
        snapshot.write(path, snapshot.Snapshot(generator=G))
        words = ["sample", str(path), "--num-images", str(COMMAND_IMAGES), "--out", str(out)]

        def call() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                code = cli.main(words)
            if code:
                sys.exit(f"hamgan {' '.join(words)}: exit code {code}")

        command = [sys.executable, "-m", "hamgan", *words]
        passes = {batch: f"forward passes, batch {batch}" for batch in (CHUNK, LARGE_BATCH)}
        medians = take_turns(
            {
                **{name: partial(bare, G, batch, COMMAND_IMAGES) for batch, name in passes.items()},
                "the command, without the process's start": call,
                "the command": partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL),
            },
            COMMAND_ROUNDS,
        )
    best = min(medians[name] for name in passes.values())
    print(f"\n### hamgan sample, {COMMAND_IMAGES} images of 128x128, width 32; medians of {COMMAND_ROUNDS}\n")
    print("| | seconds | of the faster forward passes |\n|---|---|---|")
    for name, value in medians.items():
        target = f" (target: at most {COMMAND_TARGET})" if "command" in name else ""
        print(f"| {name} | {value:.2f} | {value / best:.2f}{target} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("snapshot", nargs="?", type=Path, help="or a run folder, whose newest is taken")
    parser.add_argument("--images", type=int, default=2_000, help="a round, of each kind")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--archive", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.images < LARGE_BATCH:
        parser.error(f"--images is {options.images}; it must be at least {LARGE_BATCH}")
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; it must be at least 1")
    if options.archive:
        write_archive(generator(options.snapshot), options.archive)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    compare_stores(options.snapshot, options.images, options.rounds)
    compare_command()


if __name__ == "__main__":
    main()

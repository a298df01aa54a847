"""Many images to a folder or an archive: streamed, in constant memory, and taken up again after a kill."""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from hamgan.checkpoint import write_atomically
from hamgan.sampling.draw import DrawsImages, draw_chunks
from hamgan.sampling.png import END, encode_pngs

PLAN = "samples.json"
MAX_WAITING = 4
"""Tasks that may wait to be written before drawing waits for them."""
COPY = 1 << 22  # bytes copied at once


@dataclass(frozen=True, kw_only=True)
class SampleList:
    """Which images: number i is drawn from seeds[i] and labels[i]."""

    seeds: Sequence[int]
    labels: Sequence[int]
    class_names: Sequence[str] = ()
    """Name of each class; may be empty."""
    truncation: float | None = None
    """As in `seeded_latents`."""
    z_scale: float = 1.0
    """Likewise."""

    def __len__(self) -> int:
        return len(self.seeds)

    def file_name(self, index: int) -> str:
        """Name an image by class and seed; a stranger's class name cannot leave the folder."""
        y, seed = self.labels[index], self.seeds[index]
        name = re.sub(r"[^\w.-]+", "_", self.class_names[y]).strip(".") if y < len(self.class_names) else ""
        return f"{y:04d}{'-' if name else ''}{name}-seed{seed:06d}.png"

    def draw(self, G: DrawsImages, indices: Sequence[int]) -> Iterator[Tensor]:
        """Draw some of the images, as `draw_chunks` yields them."""
        seeds, labels = [self.seeds[i] for i in indices], [self.labels[i] for i in indices]
        return draw_chunks(G, seeds, labels, self.truncation, self.z_scale)


def fingerprint(G: DrawsImages) -> str:
    """Return a digest of a network: all, with seed and class, that its images depend on."""
    assert isinstance(G, nn.Module)
    digest = hashlib.sha256(repr(G.config).encode())
    for name, tensor in G.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _plan(G: DrawsImages, samples: SampleList) -> dict[str, Any]:
    return {"generator": fingerprint(G), "truncation": samples.truncation, "z_scale": samples.z_scale}


def _claim(path: Path, plan: dict[str, Any], occupied: bool) -> None:
    """Write a plan, or check that the one which is there is the same.

    Raises:
        ValueError: If other images lie there.
    """
    if not path.is_file():
        if occupied:
            raise ValueError(f"{path.parent}: holds images but no {PLAN} that says of what; choose another folder")
        write_atomically(path, lambda file: file.write(json.dumps(plan, indent=1).encode()))
        return
    try:
        begun = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        begun = {}
    for key, value in plan.items():
        if not isinstance(begun, dict) or begun.get(key, ...) != value:
            was = begun.get(key) if isinstance(begun, dict) else begun
            raise ValueError(f"{path}: images of {key} {was} lie there, now it is {value}; choose another --out")


class _Writer:
    """Threads that write what is drawn; when more than so many tasks wait, drawing waits for them."""

    def __init__(self, threads: int = 1, max_waiting: int = MAX_WAITING) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._max_waiting = max_waiting
        self._waiting: list[Future[None]] = []

    def __call__(self, *tasks: Callable[[], None]) -> None:
        self._waiting += [self._pool.submit(task) for task in tasks]
        self._wait(self._max_waiting)

    def finish(self) -> None:
        self._wait(0)

    def _wait(self, at_most: int) -> None:
        while len(self._waiting) > at_most:
            self._waiting.pop(0).result()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def write_folder(G: DrawsImages, samples: SampleList, out: Path, *, progress: bool = True) -> int:
    """Write one PNG an image; those that a killed run has left are kept.

    A file appears whole or not at all. `samples.json` in the folder says which weights and which truncation they are of.

    Args:
        G: In evaluation mode, a network.
        samples: Which images.
        out: The folder.
        progress: Show a bar with the time left.

    Returns:
        How many images were there already.

    Raises:
        ValueError: If other images lie in the folder.
        OSError: If it cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(out) if entry.name.endswith(".png")}
    _claim(out / PLAN, _plan(G, samples), bool(sizes))
    missing = [i for i in range(len(samples)) if not _whole(out / samples.file_name(i), sizes)]
    kept = len(samples) - len(missing)
    # Beside drawing on the same cores both would take longer, so there they take turns.
    on_cpu = all(parameter.device.type == "cpu" for parameter in G.parameters())
    threads = torch.get_num_threads() if on_cpu else 1
    with (
        _Writer(threads, 0 if on_cpu else MAX_WAITING) as write,
        tqdm(total=len(samples), initial=kept, unit="img", delay=2, disable=not progress) as bar,
    ):
        start = 0
        for chunk in samples.draw(G, missing):
            names = [samples.file_name(i) for i in missing[start : start + len(chunk)]]
            write(*(partial(_write_pngs, out, names[i::threads], chunk[i::threads]) for i in range(threads)))
            start += len(chunk)
            bar.update(len(chunk))
        write.finish()
    return kept


def _whole(path: Path, sizes: dict[str, int]) -> bool:
    """Say whether a PNG is there with its end: a power cut, unlike a kill, can leave one without."""
    if sizes.get(path.name, 0) < len(END):
        return False
    with path.open("rb") as file:
        file.seek(-len(END), os.SEEK_END)
        return file.read() == END


def _write_pngs(out: Path, names: list[str], images: Tensor) -> None:
    # Renamed into place, but not flushed to the disk one by one, which would take longer than drawing.
    for name, content in zip(names, encode_pngs(images), strict=True):
        temporary = f"{out}/.{name}.partial"
        with open(temporary, "wb", buffering=0) as file:
            file.write(content)
        os.replace(temporary, f"{out}/{name}")


def write_npz(G: DrawsImages, samples: SampleList, out: Path, *, progress: bool = True) -> int:
    """Write `arr_0` (N, H, W, 3) uint8, `labels` and `seeds` int64 to an .npz, in one step at the end.

    Until then the pixels lie in a folder `<out>.partial`, from which a killed run goes on.

    Args:
        G: In evaluation mode, a network.
        samples: Which images.
        out: The archive.
        progress: Show a bar with the time left.

    Returns:
        How many images were there already.

    Raises:
        ValueError: If the partial folder holds other images.
        OSError: If it cannot be written.
    """
    labels, seeds = np.asarray(samples.labels, np.int64), np.asarray(samples.seeds, np.int64)
    plan = _plan(G, samples) | {"samples": hashlib.sha256(labels.tobytes() + seeds.tobytes()).hexdigest()}
    work = out.with_name(f"{out.name}.partial")
    work.mkdir(parents=True, exist_ok=True)
    pixels = work / "pixels"
    _claim(work / PLAN, plan, pixels.exists())
    side = int(G.config.resolution)
    with pixels.open("ab") as file:
        kept = file.tell() // (side * side * 3)
        file.truncate(kept * side * side * 3)
        with (
            _Writer() as write,
            tqdm(total=len(samples), initial=kept, unit="img", delay=2, disable=not progress) as bar,
        ):
            for chunk in samples.draw(G, range(kept, len(samples))):
                rows = chunk.permute(0, 2, 3, 1).contiguous().numpy()
                write(partial(_append, file, rows))
                bar.update(len(chunk))
            write.finish()
    write_atomically(out, lambda file: _assemble(file, pixels, (len(samples), side, side, 3), labels, seeds))
    for path in (pixels, work / PLAN):
        path.unlink()
    work.rmdir()
    return kept


def _append(file: IO[bytes], rows: NDArray[np.uint8]) -> None:
    file.write(rows.tobytes())


def _assemble(
    file: IO[bytes], pixels: Path, shape: tuple[int, ...], labels: NDArray[np.int64], seeds: NDArray[np.int64]
) -> None:
    """Write the archive that `np.savez` would write, copying the pixels a few at a time."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as entry, pixels.open("rb") as source:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(entry, header)
            while block := source.read(COPY):
                entry.write(block)
        for name, values in (("labels", labels), ("seeds", seeds)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, values, allow_pickle=False)

"""The one pass over the images: chunks dealt to the processes, features gathered, partial results kept."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as torch_dist
from numpy.typing import NDArray
from tqdm import tqdm

from hamgan import dist
from hamgan.checkpoint import write_atomically
from hamgan.metrics.extractors.base import Extractor, Features
from hamgan.metrics.inception_score import InceptionScore
from hamgan.metrics.sources import Batch, ImageSource, IntArray, SequentialImages, spans
from hamgan.metrics.storage import read_npz, write_npz

Arrays = dict[str, NDArray[Any]]
_KEYS = ("pool", "labels", "size", "sum_p", "sum_plogp", "seen")


@dataclass(frozen=True)
class Collected:
    """What one pass over N images gives.

    Attributes:
        pool: Features, (N, d), float32, in the images' order.
        labels: Class indices, (N,); None without classes.
        score: The Inception Score's sums; None if the extractor has no classifier.
        height: Of the images, pixels.
        width: Of the images, pixels.
    """

    pool: NDArray[np.float32]
    labels: IntArray | None
    score: InceptionScore | None
    height: int
    width: int


def collect(
    images: ImageSource,
    extractor: Extractor,
    *,
    score: InceptionScore | None = None,
    batch_size: int = 64,
    chunk_size: int = 256,
    work_dir: Path | None = None,
    progress: bool = True,
) -> Collected | None:
    """See every image once, shared among the processes.

    The unit of work is a chunk of consecutive images, cut and batched alike for any number of processes: hence the
    same features to the last bit, and none twice. A finished chunk is written to `work_dir` in one step; started again
    after a kill, with the same or another number of processes, the pass goes on where it was.

    Args:
        images: Any rank may ask it for any image (an iterable only serves a process run alone).
        extractor: Feature network.
        score: An empty Inception Score of as many images, which receives the logits; None for none.
        batch_size: Images extracted at once.
        chunk_size: Images of a chunk.
        work_dir: Where partial results lie, shared by the processes; None keeps none.
        progress: Show a bar with the time left, on rank 0.

    Returns:
        Everything, on rank 0; None on the others.

    Raises:
        ValueError: If an image is bad, or work_dir holds the partial results of something else.
    """
    if isinstance(images, SequentialImages) and dist.world_size() > 1:
        raise ValueError("an iterable of images serves one process only; several need images by number")
    if score is not None and score.num_images != images.num_images:
        raise ValueError(f"Inception Score of {score.num_images} images, but there are {images.num_images}")
    if extractor.num_classes is None:
        score = None
    if work_dir is not None:
        claim(work_dir, _plan(images, extractor, score, batch_size, chunk_size))
    chunks = list(enumerate(spans(0, images.num_images, chunk_size)))[dist.rank() :: dist.world_size()]
    done: dict[int, Arrays] = {}
    total = sum(len(numbers) for _, numbers in chunks)
    bar = tqdm(total=total, unit="img", desc="extracting", disable=not (progress and dist.is_main()))
    with together(), bar:
        for chunk, numbers in chunks:
            path = None if work_dir is None else work_dir / f"chunk-{chunk:06d}.npz"
            arrays = _stored(path)
            if arrays is None:
                arrays = _extract(images, extractor, numbers, score, batch_size, bar)
                if path is not None:
                    write_npz(path, arrays)
            else:
                bar.update(len(numbers))
            done[chunk] = arrays
    everything = gather(done)
    collected = None
    with together():
        if everything is not None:
            collected = _join(everything, score)
    return collected


def batches(
    images: ImageSource, extractor: Extractor, numbers: IntArray, size: int
) -> Iterator[tuple[Batch, Features]]:
    """Fetch and extract, the next batch being fetched meanwhile where fetching is reading."""
    runs = [numbers[i : i + size] for i in range(0, len(numbers), size)]
    if not images.reads_ahead:
        # A generator computes on the same device, and torch's modes are thread-local: draw here, in turn.
        for run in runs:
            batch = images(run)
            yield batch, extractor(batch.images)
        return
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(images, runs[0])
        for i in range(len(runs)):
            batch = ahead.result()
            if i + 1 < len(runs):
                ahead = pool.submit(images, runs[i + 1])
            yield batch, extractor(batch.images)


def _extract(
    images: ImageSource, extractor: Extractor, numbers: IntArray, score: InceptionScore | None, size: int, bar: tqdm
) -> Arrays:
    pools, labels, sizes = [], [], set()
    part = None if score is None else score.like()
    start = numbers[0]
    for batch, features in batches(images, extractor, numbers, size):
        count = len(batch.images)
        pools.append(features.pool.cpu().numpy())
        labels.append(np.full(count, -1) if batch.labels is None else batch.labels)
        sizes.add(tuple(batch.images.shape[2:]))
        if part is not None and features.logits is not None:
            part.update(features.logits, np.arange(start, start + count))
        start += count
        bar.update(count)
    if len(sizes) > 1:
        raise ValueError(f"images of mixed sizes: {' and '.join(f'{w}x{h}' for h, w in sorted(sizes))}")
    arrays: Arrays = {"pool": np.concatenate(pools), "labels": np.concatenate(labels), "size": np.array(sizes.pop())}
    empty: Arrays = {"sum_p": np.zeros((0, 0)), "sum_plogp": np.zeros(0), "seen": np.zeros(0, np.int64)}
    return arrays | (empty if part is None else part.state())


def _stored(path: Path | None) -> Arrays | None:
    if path is None or not path.is_file():
        return None
    try:
        return read_npz(path, _KEYS)[0]
    except ValueError:  # written in one step, so damaged later; cheaper to see the images again than to stop
        return None


def _join(done: dict[int, Arrays], score: InceptionScore | None) -> Collected:
    parts = [done[chunk] for chunk in sorted(done)]
    sizes = {tuple(int(side) for side in part["size"]) for part in parts}
    if len(sizes) > 1:
        raise ValueError(f"images of mixed sizes: {' and '.join(f'{w}x{h}' for h, w in sorted(sizes))}")
    labels = np.concatenate([part["labels"] for part in parts])
    if (labels < 0).any() and (labels >= 0).any():
        raise ValueError("labels: some images have them and some have not")
    if score is not None:
        for part in parts:
            score.restore(part)
    height, width = sizes.pop()
    pool = np.concatenate([part["pool"] for part in parts])
    return Collected(pool, None if labels[0] < 0 else labels, score, height, width)


@contextmanager
def together() -> Iterator[None]:
    """Let all processes finish a piece of work, and all raise what one of them met.

    Else the others would wait for results that never come, and the line that says why could be lost.
    """
    problem: Exception | None = None
    try:
        yield
    except (ValueError, OSError) as error:
        problem = error
    problems: list[Exception | None] = [problem]
    if dist.world_size() > 1:
        problems = [None] * dist.world_size()
        torch_dist.all_gather_object(problems, problem)
    first = next((found for found in problems if found is not None), None)
    if first is not None:
        raise first


def gather(done: dict[int, Arrays]) -> dict[int, Arrays] | None:
    """Bring every process's chunks to rank 0; None on the others."""
    if dist.world_size() == 1:
        return done
    shares: list[Any] | None = [None] * dist.world_size() if dist.is_main() else None
    torch_dist.gather_object(done, shares, dst=0)
    if shares is None:
        return None
    return {chunk: arrays for share in shares for chunk, arrays in share.items()}


def _plan(
    images: ImageSource, extractor: Extractor, score: InceptionScore | None, batch_size: int, chunk_size: int
) -> dict[str, Any]:
    return {
        **extractor.identity,
        "num_images": images.num_images,
        "images": images.fingerprint,
        "batch_size": batch_size,
        "chunk_size": chunk_size,
        "splits": None if score is None else score.splits,
        "shuffle_seed": None if score is None else score.shuffle_seed,
    }


def claim(work_dir: Path, plan: dict[str, Any]) -> None:
    """Take a folder of partial results for this work, or refuse if it is another's.

    Args:
        work_dir: Made if needed.
        plan: Everything that the partial results depend on.

    Raises:
        ValueError: If the folder was begun with another plan.
    """
    if plan["images"] is None:
        raise ValueError(f"{work_dir}: resuming needs a fingerprint of the images, these have none")
    path = work_dir / "plan.json"
    with together():  # also: nobody looks for chunks before the folder is claimed
        if not dist.is_main():
            return
        work_dir.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            _check_plan(work_dir, plan, path.read_text())
        else:
            write_atomically(path, lambda file: file.write(json.dumps(plan, indent=1).encode()))


def _check_plan(work_dir: Path, plan: dict[str, Any], text: str) -> None:
    try:
        begun = json.loads(text)
    except json.JSONDecodeError:
        begun = {}
    for key, value in plan.items():
        if begun.get(key) != value:
            was = f"{key} = {begun.get(key)!r}, now {value!r}"
            raise ValueError(f"{work_dir}: holds partial results with {was}; remove the folder or choose another")

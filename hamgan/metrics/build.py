"""Build stored statistics from images: constant memory, several processes, resumable."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hamgan import dist
from hamgan.metrics.collect import batches, claim, together
from hamgan.metrics.extractors.base import Extractor
from hamgan.metrics.reference import Reference, StatsMeta, features_path, load_statistics, now, save_statistics
from hamgan.metrics.sources import ImageSource, IntArray, spans
from hamgan.metrics.stats import FeatureStats, Moments
from hamgan.metrics.storage import read_npz, write_npz, write_rows

_SAVE_EVERY = 60.0  # seconds
_CHUNK = ("pool", "labels", "sizes")


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the caller knows of the images, to be stored with their statistics."""

    dataset: str | None = None
    """Name of the data set."""
    split: str | None = None
    """"train", "validation", ..."""
    crop: str | None = None
    """How they were cut to a square; None if they came so."""
    filter: str | None = None
    """How they were resized; None if they came so."""


def build_statistics(
    images: ImageSource,
    extractor: Extractor,
    out: str | Path,
    *,
    description: Description | None = None,
    keep_features: bool = True,
    batch_size: int = 64,
    chunk_size: int = 256,
    progress: bool = True,
) -> Reference | None:
    """See every image once and store mean and covariance of its features, and the features beside them.

    Under torchrun the processes share the images; the same command, after a kill, goes on. With features kept, the sums
    are taken from them at the end, in the images' order: the same to the last bit however often the work was interrupted
    and whoever did it. Without, each process keeps one running sum, saved every minute beside OUT: the same to the last
    bit after a kill, and to 1e-9 for another number of processes. Memory does not grow with the number of images, and
    disk only by the features (4 d bytes an image) if they are kept.

    Args:
        images: By number, so not an iterable.
        extractor: Feature network.
        out: File to write, `.npz`; the features go to the same name with `.features.npz`.
        description: Stored with the statistics; None knows nothing.
        keep_features: KID, precision, recall, class metrics and memorisation need them.
        batch_size: Images extracted at once.
        chunk_size: Images of a chunk, the least that a kill costs.
        progress: Show a bar with the time left, on rank 0.

    Returns:
        What was written, on rank 0; None on the others.

    Raises:
        ValueError: If an image is bad, there are fewer than 2, or partial results are of something else.
        OSError: If the file cannot be written.
    """
    out = Path(out)
    if out.suffix != ".npz" or out.name.endswith(".features.npz"):
        raise ValueError(f"{out}: statistics are written to a file named *.npz (and not *.features.npz)")
    if images.num_images < 2:
        raise ValueError(f"n = {images.num_images}: a covariance needs at least 2 images")
    work = out.with_name(out.name + ".partial")
    plan = {
        **extractor.identity,
        "num_images": images.num_images,
        "images": images.fingerprint,
        "chunk_size": chunk_size,
        "keep_features": keep_features,
    }
    claim(work, plan)
    done: set[int] = set()
    with together():
        if dist.is_main():
            done = _finished_chunks(work) if keep_features else {i for part in _parts(work) for i in part.done.tolist()}
    done = dist.from_rank0(done)
    rank, world_size = dist.rank(), dist.world_size()
    chunks = list(enumerate(spans(0, images.num_images, chunk_size)))
    if not keep_features:  # a running sum goes on in its own order, so each process keeps its own share
        chunks = chunks[rank::world_size]
    chunks = [(i, numbers) for i, numbers in chunks if i not in done]
    if keep_features:
        chunks = chunks[rank::world_size]
    with together():
        see = _keep if keep_features else _sum
        see(images, extractor, chunks, work, batch_size, progress)
    reference = None
    with together():
        if dist.is_main():
            known = description or Description()
            reference = _finish(images, extractor, out, work, known, chunk_size, keep_features)
    return reference


@dataclass
class _Part:
    """Running sums and which chunks are in them."""

    stats: FeatureStats
    counts: IntArray
    unlabelled: int
    sizes: set[tuple[int, int]]
    done: IntArray

    @classmethod
    def empty(cls, dim: int) -> "_Part":
        return cls(FeatureStats(dim), np.zeros(0, np.int64), 0, set(), np.zeros(0, np.int64))

    def add(self, chunk: int, pool: NDArray[np.float32], labels: IntArray, sizes: NDArray[np.integer]) -> None:
        self.stats.update(pool)
        self.counts = _add_counts(self.counts, np.bincount(labels[labels >= 0]))
        self.unlabelled += int((labels < 0).sum())
        self.sizes |= {(int(h), int(w)) for h, w in sizes}
        self.done = np.append(self.done, chunk)

    def save(self, path: Path) -> None:
        arrays: dict[str, NDArray[Any]] = {f"stats_{key}": value for key, value in self.stats.state().items()}
        arrays |= {"counts": self.counts, "unlabelled": np.array(self.unlabelled), "done": self.done}
        write_npz(path, arrays | {"sizes": np.array(sorted(self.sizes)).reshape(-1, 2)})

    @classmethod
    def load(cls, path: Path) -> "_Part":
        keys = [*(f"stats_{key}" for key in FeatureStats(1).state()), "counts", "unlabelled", "done", "sizes"]
        arrays, _ = read_npz(path, keys)
        stats = FeatureStats.from_state({key.removeprefix("stats_"): arrays[key] for key in keys[:-4]})
        sizes = {(int(h), int(w)) for h, w in arrays["sizes"]}
        return cls(stats, arrays["counts"], int(arrays["unlabelled"]), sizes, arrays["done"])


def _parts(work: Path) -> Iterator[_Part]:
    for path in sorted(work.glob("part-*.npz")):
        yield _Part.load(path)


def _finished_chunks(work: Path) -> set[int]:
    found = set()
    for path in work.glob("chunk-*.npz"):
        try:
            read_npz(path, _CHUNK)
        except ValueError:  # written in one step, so damaged later; cheaper to see the images again than to stop
            continue
        found.add(int(path.stem.removeprefix("chunk-")))
    return found


def _chunk_path(work: Path, chunk: int) -> Path:
    return work / f"chunk-{chunk:06d}.npz"


def _extracted(
    images: ImageSource, extractor: Extractor, chunks: list[tuple[int, IntArray]], batch_size: int, progress: bool
) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
    total = sum(len(numbers) for _, numbers in chunks)
    with tqdm(total=total, unit="img", desc="statistics", disable=not (progress and dist.is_main())) as bar:
        for chunk, numbers in chunks:
            pools, labels, sizes = [], [], set()
            for batch, features in batches(images, extractor, numbers, batch_size):
                pools.append(features.pool.cpu().numpy())
                labels.append(np.full(len(batch.images), -1) if batch.labels is None else batch.labels)
                sizes.add((int(batch.images.shape[2]), int(batch.images.shape[3])))
                bar.update(len(batch.images))
            arrays = {"pool": np.concatenate(pools), "labels": np.concatenate(labels), "sizes": np.array(sorted(sizes))}
            yield chunk, arrays


def _keep(
    images: ImageSource,
    extractor: Extractor,
    chunks: list[tuple[int, IntArray]],
    work: Path,
    batch_size: int,
    progress: bool,
) -> None:
    for chunk, arrays in _extracted(images, extractor, chunks, batch_size, progress):
        write_npz(_chunk_path(work, chunk), arrays)


def _sum(
    images: ImageSource,
    extractor: Extractor,
    chunks: list[tuple[int, IntArray]],
    work: Path,
    batch_size: int,
    progress: bool,
) -> None:
    # A sum's last bits depend on its order. Hence a process of the same place takes up the sum where it was, and adds
    # the same chunks in the same order as if it had never stopped.
    path = work / f"part-{dist.world_size():04d}-{dist.rank():04d}.npz"
    part = _Part.load(path) if path.is_file() else _Part.empty(extractor.dim)
    saved = time.monotonic()
    for chunk, arrays in _extracted(images, extractor, chunks, batch_size, progress):
        part.add(chunk, **arrays)
        if time.monotonic() - saved > _SAVE_EVERY:
            part.save(path)
            saved = time.monotonic()
    if chunks:
        part.save(path)


def _add_counts(a: IntArray, b: IntArray) -> IntArray:
    length = max(len(a), len(b))
    return np.pad(a, (0, length - len(a))) + np.pad(b, (0, length - len(b)))


def _finish(
    images: ImageSource,
    extractor: Extractor,
    out: Path,
    work: Path,
    description: Description,
    chunk_size: int,
    keep_features: bool,
) -> Reference:
    whole = _of_chunks(work, extractor.dim) if keep_features else _of_parts(work, extractor.dim)
    num_chunks = -(-images.num_images // chunk_size)
    if not np.array_equal(np.sort(whole.done), np.arange(num_chunks)) or whole.stats.n != images.num_images:
        raise ValueError(f"{work}: {whole.stats.n} of {images.num_images} images were seen; remove it and start again")
    if len(whole.sizes) > 1:
        raise ValueError(f"images of mixed sizes: {' and '.join(f'{w}x{h}' for h, w in sorted(whole.sizes))}")
    if whole.unlabelled not in (0, images.num_images):
        raise ValueError("labels: some images have them and some have not")
    height, width = next(iter(whole.sizes))
    labelled = whole.unlabelled == 0
    names = None if images.class_names is None or not labelled else tuple(images.class_names)
    counts = _add_counts(whole.counts, np.zeros(0 if names is None else len(names), np.int64))
    meta = StatsMeta(
        extractor=extractor.name,
        protocol=extractor.protocol,
        weights_sha256=extractor.weights_sha256,
        n=whole.stats.n,
        dataset=description.dataset,
        split=description.split,
        resolution=height if height == width else None,
        crop=description.crop,
        filter=description.filter,
        fingerprint=images.fingerprint,
        class_names=names,
        class_counts=tuple(counts.tolist()) if labelled else None,
    )
    if keep_features:
        _join_features(features_path(out), work, num_chunks, (whole.stats.n, extractor.dim), meta)
    else:
        features_path(out).unlink(missing_ok=True)  # an older file's features would belong to other statistics
    save_statistics(out, whole.stats.moments(), meta)
    shutil.rmtree(work)
    return load_statistics(out)


def _of_chunks(work: Path, dim: int) -> _Part:
    whole = _Part.empty(dim)
    for path in sorted(work.glob("chunk-*.npz")):
        whole.add(int(path.stem.removeprefix("chunk-")), **read_npz(path, _CHUNK)[0])
    return whole


def _of_parts(work: Path, dim: int) -> _Part:
    whole = _Part.empty(dim)
    for part in _parts(work):
        whole.stats.merge(part.stats)
        whole.counts = _add_counts(whole.counts, part.counts)
        whole.unlabelled += part.unlabelled
        whole.sizes |= part.sizes
        whole.done = np.append(whole.done, part.done)
    return whole


def _join_features(path: Path, work: Path, num_chunks: int, shape: tuple[int, int], meta: StatsMeta) -> None:
    def rows(key: str) -> Iterator[NDArray[Any]]:
        for chunk in range(num_chunks):
            yield read_npz(_chunk_path(work, chunk), (key,))[0][key]

    shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        "pool": (shape, np.dtype(np.float32)),
        "labels": (shape[:1], np.dtype(np.int64)),
    }
    write_rows(path, {key: rows(key) for key in shapes}, shapes, meta.to_json())


def merge_statistics(paths: list[Path], out: str | Path) -> Reference:
    """Merge statistics of disjoint parts of a data set, built apart, into one file (without features).

    Args:
        paths: Files that `build_statistics` wrote.
        out: File to write.

    Returns:
        What was written.

    Raises:
        ValueError: If a file is unverified, two are of the same images, or they differ in extractor, protocol, weights,
            resolution or data set.
        OSError: If a file cannot be read or written.
    """
    parts = [load_statistics(path) for path in paths]
    seen: dict[object, Path] = {}
    for part in parts:
        fingerprint = None if part.meta is None else part.meta.fingerprint
        for mark in {part.path.resolve(), fingerprint} - {None}:
            if mark in seen:
                raise ValueError(f"{part.path}: the same images as {seen[mark]}; parts must not overlap")
            seen[mark] = part.path
    metas = [part.meta for part in parts if part.meta is not None]
    if len(metas) < len(parts) or not metas:
        raise ValueError("only statistics that hamgan wrote can be merged: others do not say their sample count")
    total = FeatureStats(len(parts[0].moments.mu))
    counts: IntArray | None = np.zeros(0, np.int64)
    for part, meta in zip(parts, metas):
        for key in ("extractor", "protocol", "weights_sha256", "resolution", "dataset", "split", "class_names"):
            if getattr(meta, key) != getattr(metas[0], key):
                mine, first = getattr(meta, key), getattr(metas[0], key)
                raise ValueError(f"{part.path}: {key} = {mine!r}, but {parts[0].path} has {first!r}")
        total.merge(FeatureStats.from_moments(part.moments))
        own = meta.class_counts
        counts = None if counts is None or own is None else _add_counts(counts, np.array(own, np.int64))
    merged = replace(
        metas[0],
        n=total.n,
        class_counts=None if counts is None else tuple(counts.tolist()),
        fingerprint=None,
        date=now(),
    )
    moments: Moments = total.moments()
    save_statistics(Path(out), moments, merged)
    return load_statistics(out)

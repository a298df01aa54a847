"""Stored statistics of a reference data set: what they depend on, and the refusal to compare what is not comparable."""

import datetime
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import hamgan
from hamgan.metrics.extractors.base import Extractor
from hamgan.metrics.sources import MOST_CLASSES
from hamgan.metrics.stats import Moments
from hamgan.metrics.storage import map_array, read_npz, write_npz

SCHEMA = 1
HELD_OUT_SPLITS = ("validation", "val", "test")
"""Names of splits that nobody trains on."""
_LARGEST = 1e30  # of a covariance's entries; beyond, squares overflow


def versions() -> dict[str, str]:
    """Versions that a number may depend on."""
    return {"hamgan": hamgan.__version__, "torch": torch.__version__, "numpy": np.__version__}


def now() -> str:
    """Return the time, UTC, ISO 8601, in seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class StatsMeta:
    """Everything that stored statistics depend on."""

    extractor: str
    """Feature network, e.g. "inception"."""
    protocol: str
    """Input pipeline, e.g. "tf1"."""
    weights_sha256: str
    """Hex digest of the network's weight file."""
    n: int
    """Images."""
    ddof: int = 1
    """Delta degrees of freedom of the covariance."""
    dataset: str | None = None
    """Name of the data set."""
    split: str | None = None
    """"train", "validation", ..."""
    resolution: int | None = None
    """Side of the images, pixels; None if they are not square."""
    crop: str | None = None
    """How images were cut to a square, e.g. "centre"; None if they came so."""
    filter: str | None = None
    """How images were resized, e.g. "lanczos"; None if they came so."""
    fingerprint: str | None = None
    """Digest of the images' source."""
    class_names: tuple[str, ...] | None = None
    """Names by class index; None without labels."""
    class_counts: tuple[int, ...] | None = None
    """Images by class index; None without labels."""
    versions: dict[str, str] = field(default_factory=versions)
    """Of the software that built them."""
    date: str = field(default_factory=now)
    """When they were built, UTC, ISO 8601."""
    schema: int = SCHEMA
    """Of this record."""

    @property
    def identity(self) -> dict[str, str]:
        """As `Extractor.identity`."""
        return {"extractor": self.extractor, "protocol": self.protocol, "weights_sha256": self.weights_sha256}

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON-able values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any], path: Path) -> "StatsMeta":
        """Read a stored record.

        Raises:
            ValueError: If it is of a newer schema or lacks a key.
        """
        schema = values.get("schema")
        if type(schema) is not int or schema > SCHEMA:
            raise ValueError(f"{path}: metadata of schema {schema}; this hamgan reads up to {SCHEMA}")
        known = {f.name for f in fields(cls)}
        missing = {"extractor", "protocol", "weights_sha256", "n"} - values.keys()
        if missing:
            raise ValueError(f"{path}: the metadata lack {sorted(missing)[0]!r}")
        kept = {key: value for key, value in values.items() if key in known}
        for key, value in kept.items():
            if not _fits(key, value):
                raise ValueError(f"{path}: the metadata say {key} = {str(value)[:60]!r}, expected {_KINDS[key]}")
        names, counts = kept.get("class_names"), kept.get("class_counts")
        if names is not None and counts is not None and len(names) != len(counts):
            raise ValueError(f"{path}: the metadata have {len(names)} class names and {len(counts)} class counts")
        for key in ("class_names", "class_counts"):
            if kept.get(key) is not None:
                kept[key] = tuple(kept[key])
        return cls(**kept)


# What a record's values must be; others are text, or absent.
_KINDS = {
    "n": "a count",
    "ddof": "a count",
    "schema": "a count",
    "resolution": "a count or nothing",
    "class_names": "a list of texts or nothing",
    "class_counts": "a list of counts or nothing",
    "versions": "names to texts",
} | dict.fromkeys(("extractor", "protocol", "weights_sha256", "date"), "text")
_KINDS |= {f.name: "text or nothing" for f in fields(StatsMeta) if f.name not in _KINDS}


def _fits(key: str, value: Any) -> bool:
    def is_count(item: Any) -> bool:
        return type(item) is int and 0 <= item < 2**53

    if value is None:
        return _KINDS[key].endswith("nothing")
    if key in ("n", "ddof", "schema", "resolution"):
        return is_count(value)
    if key == "versions":
        return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    if key in ("class_names", "class_counts"):
        return isinstance(value, list) and all(
            isinstance(item, str) if key == "class_names" else is_count(item) for item in value
        )
    return isinstance(value, str)


@dataclass(frozen=True)
class StoredFeatures:
    """Features kept beside statistics, mapped from disk rather than read.

    Attributes:
        pool: (N, d), float32.
        labels: (N,), int64; -1 throughout without labels.
        path: Their file.
    """

    pool: NDArray[np.float32]
    labels: NDArray[np.int64]
    path: Path


@dataclass(frozen=True)
class Reference:
    """Stored statistics, as read.

    Attributes:
        moments: The Gaussian.
        meta: What it depends on; None in a file of another program, which then cannot be verified.
        path: The file.
    """

    moments: Moments
    meta: StatsMeta | None
    path: Path

    def features(self) -> StoredFeatures | None:
        """Map the features kept beside the statistics; None if there are none.

        Raises:
            ValueError: If they are damaged or belong to other statistics.
        """
        path = features_path(self.path)
        if not path.is_file():
            return None
        stored = load_features(path)
        if self.moments.n is not None and len(stored.pool) != self.moments.n:
            raise ValueError(f"{path}: {len(stored.pool)} features, but {self.path} was built from {self.moments.n}")
        return stored


def features_path(path: Path) -> Path:
    """Where the features of the statistics OUT.npz lie: OUT.features.npz."""
    return path.with_suffix(".features.npz")


def save_statistics(path: Path, moments: Moments, meta: StatsMeta) -> None:
    """Store statistics in one step; pytorch-fid and its kin read the file as it is.

    Raises:
        OSError: If it cannot be written.
    """
    arrays = {"mu": moments.mu, "sigma": moments.sigma, "n": np.array(meta.n)}
    write_npz(path, arrays, meta.to_json())


def load_statistics(path: str | Path) -> Reference:
    """Read stored statistics: ours, or a bare mu and sigma (TTUR, pytorch-fid, ADM).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, holds pickles, or is no such file.
    """
    path = Path(path)
    arrays, raw = read_npz(path, ("mu", "sigma"))
    meta = None if raw is None else StatsMeta.from_json(raw, path)
    for key, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{path}: {key} holds {array.dtype}, expected real numbers")
    try:
        mu, sigma = (arrays[key].astype(np.float64) for key in ("mu", "sigma"))
        moments = Moments(mu, sigma, None if meta is None else meta.n)
        _check_covariance(sigma)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Reference(replace(moments, sigma=(sigma + sigma.T) / 2), meta, path)


def _check_covariance(sigma: NDArray[np.float64]) -> None:
    # What is seen at a glance; that all eigenvalues are positive shows when the matrix is factored.
    largest = float(np.abs(sigma).max(initial=0.0))
    if largest > _LARGEST:
        raise ValueError(f"sigma is no covariance of features, it has an entry of {largest:.3g}")
    if (sigma.diagonal() < 0).any():
        raise ValueError(f"sigma is no covariance, it has a variance of {sigma.diagonal().min():.4g}")
    apart = float(np.abs(sigma - sigma.T).max(initial=0.0))
    if apart > 1e-3 * largest:
        raise ValueError(f"sigma is no covariance, it differs from its transpose by {apart:.4g}")


def load_features(path: Path) -> StoredFeatures:
    """Map stored features.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or no such file.
    """
    pool, labels = map_array(path, "pool"), map_array(path, "labels")
    if pool.ndim != 2 or pool.dtype != np.float32 or labels.shape != pool.shape[:1] or labels.dtype != np.int64:
        kinds = f"pool {pool.dtype} {pool.shape} and labels {labels.dtype} {labels.shape}"
        raise ValueError(f"{path}: {kinds} are no features")
    if len(labels) and not -1 <= labels.min() <= labels.max() < MOST_CLASSES:
        raise ValueError(f"{path}: labels from {labels.min()} to {labels.max()}, expected classes, or -1 throughout")
    return StoredFeatures(pool, labels, path)


def check_comparable(reference: Reference, extractor: Extractor, resolution: int | None) -> list[str]:
    """Refuse to compare images with a reference that was made otherwise.

    Args:
        reference: Stored statistics.
        extractor: What the images are seen with.
        resolution: Side of the images, pixels; None if they are not square.

    Returns:
        Warnings: what could not be checked.

    Raises:
        ValueError: If extractor, protocol, weights, width or resolution differ.
    """
    width = len(reference.moments.mu)
    if width != extractor.dim:
        raise ValueError(f"{reference.path}: features of width {width}, but {extractor.name} gives {extractor.dim}")
    meta = reference.meta
    if meta is None:
        return [f"unverified reference: {reference.path.name} says nothing of its extractor, protocol or data"]
    for key, value in extractor.identity.items():
        stored = meta.identity[key]
        if stored != value:
            raise ValueError(f"{reference.path}: {key} = {stored!r}, but the images are seen with {value!r}")
    if meta.ddof != 1:
        raise ValueError(f"{reference.path}: ddof = {meta.ddof}, expected 1")
    if meta.resolution is not None and resolution is not None and meta.resolution != resolution:
        raise ValueError(f"{reference.path}: resolution = {meta.resolution}, but the images have {resolution}")
    return []


def check_dataset(reference: Reference, *, dataset: str | None = None, fingerprint: str | None = None) -> None:
    """Refuse a reference of another data set than the one that a generator was trained on.

    Args:
        reference: Stored statistics; unverified ones pass.
        dataset: Expected name; None accepts any.
        fingerprint: Expected digest of the images' source; None accepts any.

    Raises:
        ValueError: If either differs.
    """
    if reference.meta is None:
        return
    for key, expected in (("dataset", dataset), ("fingerprint", fingerprint)):
        stored = getattr(reference.meta, key)
        if expected is not None and stored is not None and stored != expected:
            raise ValueError(f"{reference.path}: {key} = {stored!r}, expected {expected!r}")

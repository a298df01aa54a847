"""What `stats inspect` prints and `stats check` finds."""

from pathlib import Path

import numpy as np
import torch

from hamgan.metrics.extractors.base import Extractor
from hamgan.metrics.reference import Reference, check_comparable, check_dataset, features_path, load_statistics
from hamgan.metrics.stats import FeatureStats


def inspect_statistics(path: str | Path) -> str:
    """Describe stored statistics in lines of text.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or no such file.
    """
    reference = load_statistics(path)
    moments, meta = reference.moments, reference.meta
    rows: dict[str, object] = {"file": reference.path, "features": len(moments.mu)}
    if meta is None:
        rows["metadata"] = "none: written by another program, so an unverified reference"
    else:
        record = meta.to_json()
        counts, names = record.pop("class_counts"), record.pop("class_names")
        rows |= {key: value for key, value in record.items() if value is not None}
        if counts:
            listed = names or [str(label) for label in range(len(counts))]
            few = min(range(len(counts)), key=lambda label: counts[label])
            many = max(range(len(counts)), key=lambda label: counts[label])
            rows["classes"] = f"{len(counts)}, from {counts[few]} ({listed[few]}) to {counts[many]} ({listed[many]})"
    rows["mean of mu"] = f"{moments.mu.mean():.6g}"
    rows["trace of sigma"] = f"{np.trace(moments.sigma):.6g}"
    stored = reference.features()
    rows["features kept"] = "no" if stored is None else f"{len(stored.pool)} in {stored.path.name}"
    width = max(map(len, rows))
    return "\n".join(f"{key.ljust(width)}  {value}" for key, value in rows.items()) + "\n"


def check_statistics(
    path: str | Path,
    *,
    extractor: Extractor | None = None,
    resolution: int | None = None,
    dataset: str | None = None,
    fingerprint: str | None = None,
) -> list[str]:
    """Check stored statistics for consistency, and against what they are to be compared with.

    Args:
        path: The file.
        extractor: That images will be seen with; None checks nothing of it.
        resolution: Of the images, pixels; None checks nothing of it.
        dataset: Expected name; None accepts any.
        fingerprint: Expected digest of the images' source; None accepts any.

    Returns:
        Warnings; empty if all is well.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, contradicts itself, or does not fit.
    """
    reference = load_statistics(path)
    check_dataset(reference, dataset=dataset, fingerprint=fingerprint)
    warnings = [] if extractor is None else check_comparable(reference, extractor, resolution)
    moments, meta = reference.moments, reference.meta
    if extractor is None and meta is None:
        warnings.append(f"unverified reference: {reference.path.name} carries no metadata")
    values = torch.linalg.eigvalsh(torch.from_numpy(moments.sigma))
    if float(values[0]) < -1e-6 * max(float(values[-1]), 0.0):
        raise ValueError(f"{path}: sigma is no covariance, its smallest eigenvalue is {float(values[0]):.4g}")
    if meta is not None and meta.class_counts is not None and sum(meta.class_counts) != meta.n:
        raise ValueError(f"{path}: class counts sum to {sum(meta.class_counts)}, n = {meta.n}")
    if moments.n is not None and moments.n <= len(moments.mu):
        warnings.append(f"{moments.n} images for {len(moments.mu)} features: the covariance is singular")
    warnings += _check_features(reference)
    return warnings


def _check_features(reference: Reference) -> list[str]:
    stored = reference.features()
    if stored is None:
        return [f"no {features_path(reference.path).name}: only Frechet distance and Inception Score can be computed"]
    moments = reference.moments
    again = FeatureStats.from_features(stored.pool).moments()
    scale = float(np.abs(moments.sigma).max()) or 1.0
    apart = max(float(np.abs(again.sigma - moments.sigma).max()) / scale, float(np.abs(again.mu - moments.mu).max()))
    if apart > 1e-5:
        raise ValueError(f"{stored.path}: these features do not give the statistics in {reference.path.name}")
    return []

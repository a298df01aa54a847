"""Whether a generator repeats its training images: nearest neighbours, calibrated by images it never saw."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from hamgan.metrics.extractors.base import exact_float32
from hamgan.metrics.neighbours import PointSet, kth_neighbour
from hamgan.metrics.stats import FloatArray, as_features


@dataclass(frozen=True)
class Memorisation:
    """Distances of generated images to the training set, against those of held-out real images.

    Attributes:
        near_share: Share of generated images nearer to a training image than `level` of the held-out ones are; equal
            to `level` if generated images are as new as held-out ones, above it if some are repeated.
        near_error: Its standard error over the generated samples.
        nearer_probability: Probability that a generated image is nearer to the training set than a held-out one, ties
            counted half; 0.5 is neutral, well above suggests copying, well below that images are unlike real ones.
        exact_copies: Generated images whose features equal a training image's.
        level: The quantile of the held-out distances that `near_share` uses.
        calibration: "held-out", or "leave-one-out" over the training set itself for want of held-out images.
        closest: Numbers of the nearest pairs, generated and training, nearest first.
        distances: Their distances.
    """

    near_share: float
    near_error: float
    nearer_probability: float
    exact_copies: int
    level: float
    calibration: str
    closest: tuple[tuple[int, int], ...]
    distances: tuple[float, ...]


def memorisation(
    fake: ArrayLike | Tensor,
    train: ArrayLike | Tensor,
    heldout: ArrayLike | Tensor | None = None,
    *,
    level: float = 0.05,
    num_closest: int = 16,
    device: torch.device | str = "cpu",
) -> Memorisation:
    """Compare generated images' distances to the training set with those of images that are surely new.

    Args:
        fake: Features of generated images, (M, d).
        train: Features of the training images, (N, d).
        heldout: Features of real images not trained on, (L, d); None compares each training image with the others.
        level: Quantile of the calibration, 0..1.
        num_closest: Pairs to name.
        device: Where the matrix products run.

    Returns:
        The comparison.

    Raises:
        ValueError: If widths differ, values are not finite, or there are fewer than 2 training images.

    Source: Meehan, Chaudhuri & Dasgupta 2020 for the comparison of the two distances' distributions.
    """
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: expected 0..1")
    x, t = as_features(fake), as_features(train)
    held = None if heldout is None else as_features(heldout)
    for name, other in (("train", t), ("heldout", held)):
        if other is not None and other.shape[1] != x.shape[1]:
            raise ValueError(f"features: widths {x.shape[1]} and {other.shape[1]} ({name}) differ")
    if len(t) < 2:
        raise ValueError(f"n = {len(t)}: memorisation needs at least 2 training images")
    if len({x.dtype, t.dtype, t.dtype if held is None else held.dtype}) > 1:  # copies are recognised by their bytes
        x, t = x.astype(np.float64), t.astype(np.float64)
        held = None if held is None else held.astype(np.float64)
    centre = t.mean(axis=0, dtype=np.float64)
    with exact_float32(torch.device(device)):
        training = PointSet(t, centre=centre, device=device)
        generated = PointSet(x, centre=centre, device=device)
        squared, nearest = kth_neighbour(generated, training, 1)
        calibration = training if held is None else PointSet(held, centre=centre, device=device)
        reference, _ = kth_neighbour(calibration, training, 1)
    distance = np.sqrt(squared)[generated.inverse]
    known = np.sort(np.sqrt(reference)[calibration.inverse])
    near = distance < np.quantile(known, level)
    order = np.argsort(distance, kind="stable")[:num_closest]
    partner = training.first[nearest[generated.inverse[order]]]
    return Memorisation(
        near_share=float(near.mean()),
        near_error=float(np.sqrt(near.mean() * (1 - near.mean()) / len(near))),
        nearer_probability=_probability_below(distance, known),
        exact_copies=int((distance == 0).sum()),
        level=level,
        calibration="leave-one-out" if held is None else "held-out",
        closest=tuple((int(i), int(j)) for i, j in zip(order, partner)),
        distances=tuple(float(value) for value in distance[order]),
    )


def _probability_below(values: FloatArray, known: FloatArray) -> float:
    # Mann-Whitney: of all pairs, the share in which the value is smaller, ties half.
    above = len(known) - np.searchsorted(known, values, "right")
    equal = np.searchsorted(known, values, "right") - np.searchsorted(known, values, "left")
    return float((above + equal / 2).mean() / len(known))

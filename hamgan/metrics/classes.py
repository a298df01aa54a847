"""How well each class is drawn: Frechet distances within classes, and whether images look like their class."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hamgan.metrics.frechet import frechet_distance_few
from hamgan.metrics.stats import FeatureStats, FloatArray, as_features

IntArray = NDArray[np.int64]


def class_frechet(
    real: ArrayLike | Tensor,
    real_labels: IntArray,
    fake: ArrayLike | Tensor,
    fake_labels: IntArray,
    num_classes: int,
) -> FloatArray:
    """Compute the Frechet distance within each class (intra-class FID), by the nuclear norm.

    Biased by the few samples of a class, so comparable only at equal counts; the mean over classes is the usual number.

    Args:
        real: Features, (N, d).
        real_labels: Class indices, (N,).
        fake: Features, (M, d).
        fake_labels: Class indices, (M,).
        num_classes: Number of classes, K.

    Returns:
        (K,); NaN where a side has fewer than 2 samples.

    Raises:
        ValueError: If the widths differ or labels do not fit.

    Source: Miyato & Koyama 2018, section 5.1.
    """
    x, y = as_features(real), as_features(fake)
    answer = np.full(num_classes, np.nan)
    x_of, y_of = (_rows_by_class(n, len(p), num_classes) for n, p in ((real_labels, x), (fake_labels, y)))
    for label in range(num_classes):
        if min(len(x_of[label]), len(y_of[label])) >= 2:
            answer[label] = frechet_distance_few(y[y_of[label]], x[x_of[label]])
    return answer


def _rows_by_class(labels: IntArray, count: int, num_classes: int) -> list[IntArray]:
    if labels.shape != (count,) or (count and not (labels.min() >= 0 and labels.max() < num_classes)):
        raise ValueError(f"labels: expected {count} class indices below {num_classes}, got shape {labels.shape}")
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, num_classes)))


class LinearReader:
    """Names the class of a feature vector, fitted to real features in closed form.

    Linear discriminant analysis: one Gaussian a class, all with the pooled covariance within classes, which is shrunk
    towards a sphere because there are often fewer samples than features.

    Source: Hastie, Tibshirani & Friedman 2009, section 4.3; Friedman 1989 for the shrinkage.
    """

    def __init__(self, weight: FloatArray, bias: FloatArray, present: NDArray[np.bool_]) -> None:
        self._weight, self._bias = weight, bias
        self.present = present

    @classmethod
    def fit(
        cls,
        features: ArrayLike | Tensor,
        labels: IntArray,
        num_classes: int,
        *,
        rows: IntArray | None = None,
        shrinkage: float = 0.3,
    ) -> Self:
        """Fit to real features.

        Args:
            features: (N, d); may be mapped from disk, it is read by classes.
            labels: Class indices, (N,).
            num_classes: Number of classes, K.
            rows: Which samples to fit to, ascending; None for all.
            shrinkage: Share of the sphere in the covariance, 0..1.

        Raises:
            ValueError: If the labels do not fit.
        """
        x = as_features(features)
        used = np.ones(len(x), bool)
        if rows is not None:
            used[:] = False
            used[rows] = True
        of_class = [own[used[own]] for own in _rows_by_class(labels, len(x), num_classes)]
        within, means = np.zeros((x.shape[1], x.shape[1])), np.zeros((num_classes, x.shape[1]))
        for label, own in enumerate(of_class):
            if len(own) == 0:
                continue
            stats = FeatureStats.from_features(x[np.sort(own)])
            means[label] = stats.mu
            if stats.n > 1:
                within += stats.sigma * (stats.n - 1)
        present = np.array([len(own) > 0 for own in of_class])
        within /= max(int(used.sum()) - int(present.sum()), 1)
        sphere = max(float(np.trace(within)) / len(within), 1e-12)
        covariance = (1 - shrinkage) * within + shrinkage * sphere * np.eye(len(within))
        weight = torch.linalg.solve(torch.from_numpy(covariance), torch.from_numpy(means.T)).numpy()
        return cls(weight, -0.5 * np.einsum("kd,dk->k", means, weight), present)

    def predict(self, features: ArrayLike | Tensor, rows: IntArray | None = None) -> IntArray:
        """Name the classes of features: never one without a real sample.

        Args:
            features: (N, d); may be mapped from disk, it is read in blocks.
            rows: Which of them, (M,); None for all.

        Returns:
            Class indices, (M,).
        """
        x = as_features(features)
        rows = np.arange(len(x)) if rows is None else rows
        answer = np.empty(len(rows), np.int64)
        for start in range(0, len(rows), 4096):
            block = x[rows[start : start + 4096]].astype(np.float64)
            scores = block @ self._weight + self._bias
            scores[:, ~self.present] = -np.inf
            answer[start : start + 4096] = scores.argmax(axis=1)
        return answer


@dataclass(frozen=True)
class ClassAccuracy:
    """How often images are recognised as their class.

    Attributes:
        mean: Over classes, 0..1.
        error: Its standard error over the generated samples.
        per_class: (K,); NaN for a class without generated samples, or without real ones.
        ceiling: The same for real images: fitted on one half, read on the other.
    """

    mean: float
    error: float
    per_class: FloatArray
    ceiling: float


def class_accuracy(
    real: ArrayLike | Tensor,
    real_labels: IntArray,
    fake: ArrayLike | Tensor,
    fake_labels: IntArray,
    num_classes: int,
) -> ClassAccuracy:
    """Measure how often a reader fitted to real features recognises generated images as their class.

    High accuracy alone is no virtue: a generator that draws one perfect image a class has it too. Read it against
    the ceiling that real images reach, and beside coverage.

    Args:
        real: Features, (N, d).
        real_labels: Class indices, (N,).
        fake: Features, (M, d).
        fake_labels: Class indices, (M,).
        num_classes: Number of classes, K.

    Returns:
        The accuracies.

    Raises:
        ValueError: If widths differ, labels do not fit, or there are fewer than 2 classes.
    """
    x, y = as_features(real), as_features(fake)
    if num_classes < 2:
        raise ValueError(f"num_classes = {num_classes}: an accuracy needs at least 2")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features: widths {x.shape[1]} and {y.shape[1]} differ")
    reader = LinearReader.fit(x, real_labels, num_classes)
    per_class, error = _accuracy(reader, y, np.arange(len(y)), fake_labels, num_classes)
    order = np.random.RandomState(2020).permutation(len(x))
    half = LinearReader.fit(x, real_labels, num_classes, rows=np.sort(order[::2]))
    ceiling, _ = _accuracy(half, x, np.sort(order[1::2]), real_labels, num_classes)
    return ClassAccuracy(_mean(per_class), error, per_class, _mean(ceiling))


def _mean(values: FloatArray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _accuracy(
    reader: LinearReader, features: NDArray[np.floating], rows: IntArray, labels: IntArray, num_classes: int
) -> tuple[FloatArray, float]:
    right = reader.predict(features, rows) == labels[rows]
    per_class, variance = np.full(num_classes, np.nan), []
    for label, own in enumerate(_rows_by_class(labels[rows], len(rows), num_classes)):
        if len(own) and reader.present[label]:
            per_class[label] = share = right[own].mean()
            variance.append(share * (1 - share) / len(own))
    return per_class, float(np.sqrt(np.sum(variance)) / max(len(variance), 1))

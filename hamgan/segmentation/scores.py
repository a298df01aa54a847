"""Scores of label maps: intersection over union, from a confusion matrix summed over the data set."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hamgan.segmentation.dataset import IGNORED


def confusion_matrix(
    labels: NDArray[np.uint8], predictions: NDArray[np.integer], num_classes: int
) -> NDArray[np.int64]:
    """Count pixels by label (row) and prediction (column), (num_classes, num_classes); ignored ones are left out.

    Args:
        labels: (H, W); classes from 0, or 255.
        predictions: (H, W); classes from 0.
        num_classes: Number of classes.

    Raises:
        ValueError: If shapes differ or a value is no class.
    """
    if labels.shape != predictions.shape:
        raise ValueError(f"labels are {labels.shape}, predictions {predictions.shape}; they must agree")
    counted = labels != IGNORED
    rows, columns = labels[counted].astype(np.int64), predictions[counted].astype(np.int64)
    for name, values in (("a label", rows), ("a prediction", columns)):
        if values.size and not 0 <= values.min() <= values.max() < num_classes:
            raise ValueError(f"{name} is {values.max()}; there are {num_classes} classes")
    return np.bincount(rows * num_classes + columns, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a data set, in [0, 1]."""

    miou: float
    """Mean of the classes' intersections over unions; classes that neither labels nor predictions have do not count."""
    pixel_accuracy: float
    """Share of the counted pixels that are right."""
    mean_accuracy: float
    """Mean over the labelled classes of the share of their pixels that are right."""
    class_iou: tuple[float, ...]
    """Intersection over union of each class; nan for one that is absent."""


def scores(confusion: NDArray[np.int64]) -> Scores:
    """Take the scores of a confusion matrix; all nan if it is empty."""
    right, labelled, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    union = labelled + predicted - right
    with np.errstate(invalid="ignore"):
        class_iou, class_accuracy = right / union, right / labelled
        pixel_accuracy = float(np.float64(right.sum()) / confusion.sum())
    return Scores(
        miou=_mean(class_iou),
        pixel_accuracy=pixel_accuracy,
        mean_accuracy=_mean(class_accuracy),
        class_iou=tuple(class_iou.tolist()),
    )


def _mean(values: NDArray[np.float64]) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")

"""Scores against the definition, class by class."""

import math

import numpy as np
import pytest

from hamgan.segmentation.scores import confusion_matrix, scores


def dense_reference(labels: list[np.ndarray], predictions: list[np.ndarray], num_classes: int) -> tuple[float, ...]:
    """Return (mIoU, pixel accuracy, mean accuracy) from whole maps, one class after the other."""
    label, prediction = (np.concatenate([part.ravel() for part in parts]) for parts in (labels, predictions))
    label, prediction = label[label != 255], prediction[label != 255]
    ious, accuracies = [], []
    for k in range(num_classes):
        is_label, is_prediction = label == k, prediction == k
        union = np.sum(is_label | is_prediction)
        if union:
            ious.append(np.sum(is_label & is_prediction) / union)
        if is_label.any():
            accuracies.append(np.mean(is_prediction[is_label]))
    return float(np.mean(ious)), float(np.mean(label == prediction)), float(np.mean(accuracies))


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_the_dense_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_classes = 12
    # Class 3 is in no label, class 7 in no prediction, class 11 in neither.
    label_values = np.array([0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 255])
    predicted = np.array([0, 1, 2, 3, 4, 5, 6, 8, 9, 10])
    shapes = [(17, 23), (5, 40), (31, 8)]
    labels = [rng.choice(label_values, shape).astype(np.uint8) for shape in shapes]
    predictions = [
        np.where(
            rng.random(label.shape) < 0.6, np.where(np.isin(label, predicted), label, 3), rng.choice(predicted, label.shape)
        )
        for label in labels
    ]  # fmt: skip
    confusion = sum(confusion_matrix(a, b, num_classes) for a, b in zip(labels, predictions, strict=True))
    assert isinstance(confusion, np.ndarray)
    found = scores(confusion)
    assert (found.miou, found.pixel_accuracy, found.mean_accuracy) == pytest.approx(
        dense_reference(labels, predictions, num_classes), rel=1e-12
    )
    assert math.isnan(found.class_iou[11]) and found.class_iou[7] == found.class_iou[3] == 0


def test_what_is_no_class_is_refused() -> None:
    labels = np.zeros((2, 2), np.uint8)
    with pytest.raises(ValueError, match="a prediction is 3; there are 3 classes"):
        confusion_matrix(labels, labels + 3, 3)
    with pytest.raises(ValueError, match="they must agree"):
        confusion_matrix(labels, labels[:1], 3)


def test_nothing_but_ignored_pixels_scores_nothing() -> None:
    labels = np.full((2, 2), 255, np.uint8)
    found = scores(confusion_matrix(labels, np.zeros((2, 2), np.uint8), 2))
    assert math.isnan(found.miou) and math.isnan(found.pixel_accuracy)

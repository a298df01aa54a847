"""The losses: smoothed labels, the soft Jaccard index, ignored pixels."""

import pytest
import torch

from hamgan.segmentation.model import Logits
from hamgan.segmentation.run import cross_entropy, jaccard_loss, loss_of


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (2, 3, 5), generator=torch.Generator().manual_seed(1))  # class 3 is absent
    labels[:, 0] = 255
    return logits, labels


def test_label_smoothing_spreads_a_share_over_all_classes_and_leaves_ignored_pixels_out(
    batch: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, labels = batch
    log = logits.log_softmax(1)
    right = log.gather(1, labels.clamp_max(3)[:, None])[:, 0]
    by_hand = -(0.8 * right + 0.2 * log.mean(1))[labels != 255].sum() / labels.numel()
    torch.testing.assert_close(cross_entropy(logits, labels, 0.2), by_hand)


def test_the_jaccard_loss_is_its_definition_class_by_class(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = batch
    probability = logits.softmax(1).movedim(1, -1)[labels != 255]
    truth = labels[labels != 255]
    indices = []
    for label in range(4):
        is_class = (truth == label).float()
        intersection = (probability[:, label] * is_class).sum()
        if is_class.any():
            indices.append(intersection / (probability[:, label].sum() + is_class.sum() - intersection))
    assert len(indices) == 3
    torch.testing.assert_close(jaccard_loss(logits, labels), 1 - torch.stack(indices).mean())


def test_the_jaccard_loss_is_zero_where_all_is_right_and_has_no_gradient_at_ignored_pixels(
    batch: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, labels = batch
    sure = 50 * torch.nn.functional.one_hot(labels.clamp_max(3), 4).movedim(-1, 1).float()
    assert jaccard_loss(sure, labels).item() == pytest.approx(0, abs=1e-6)
    logits.requires_grad_()
    jaccard_loss(logits, labels).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert (logits.grad.movedim(1, -1)[labels == 255] == 0).all() and (logits.grad != 0).any()
    nothing = jaccard_loss(torch.randn(1, 4, 2, 2), torch.full((1, 2, 2), 255))
    assert nothing.item() == 1


def test_the_losses_are_added_with_their_weights(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = batch
    loss, statistics = loss_of(Logits(logits, logits.flip(1)), labels, 0.4, label_smoothing=0.1, jaccard_weight=0.5)
    main, jaccard = cross_entropy(logits, labels, 0.1), jaccard_loss(logits, labels)
    torch.testing.assert_close(loss, main + 0.5 * jaccard + 0.4 * cross_entropy(logits.flip(1), labels, 0.1))
    assert statistics["loss"] == main and statistics["jaccard_loss"] == jaccard

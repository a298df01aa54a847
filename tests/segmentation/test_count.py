"""Parameters and multiply-adds of the published systems, to the last known digit."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hamgan.nn.decomposition import NMF, MatrixDecomposition
from hamgan.segmentation.count import count_multiply_adds, count_parameters, count_table, shapes_of
from hamgan.segmentation.model import SegmentationConfig, Segmentor
from hamgan.segmentation.published import HAM_NET, LIGHT_HAM, PUBLISHED, VOC_HAM_NET

TINY = SegmentationConfig(
    num_classes=5,
    backbone_dims=(8, 8, 16, 16),
    backbone_depths=(1, 1, 2, 1),
    squeeze_channels=32,
    channels=32,
    rank=4,
)


def test_every_published_figure_is_met() -> None:
    rows = count_table().splitlines()[1:]
    assert [row[:34].strip() for row in rows] == list(PUBLISHED)
    for row in rows:
        assert row.count("equal") == 2 and "DIFFERS" not in row, row


def test_published_parameters() -> None:
    """Beside the table: the paper's PASCAL Context network, and HamNets without their auxiliary head (two digits known)."""
    assert count_parameters(shapes_of(replace(VOC_HAM_NET, num_classes=59))) == 54_045_435
    for head, millions in (("ham_net", 54.92), ("ham_net_plus", 66.72)):
        parameters = count_parameters(shapes_of(replace(HAM_NET, head=head, auxiliary=False)))  # type: ignore[arg-type]
        assert round(parameters / 1e6, 2) == millions


def test_parts_of_van_base() -> None:
    """The published counter's breakdown, in units of 1e9."""
    counts = count_multiply_adds(shapes_of(PUBLISHED["Light-Ham VAN-Base"].config))
    found = (counts.conv, counts.product, counts.elementwise, counts.norm, counts.resize)
    assert [round(part / 1e9, 4) for part in found] == [31.6311, 2.5648, 0.0297, 0.0284, 0.1730]
    assert sum(found) == counts.total == 34_427_076_608


@pytest.mark.parametrize("head", ["light_ham", "ham_net_plus"])
def test_products_agree_with_torchs_counter_of_what_is_computed(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions and the ham's products, counted while real numbers are computed by a counter that knows no rule of ours.

    The height is divisible by every stride and by the dilation, so that no padding is computed.
    """
    config = replace(TINY, head=head)
    model = Segmentor(config).eval()
    # The published steps, which count x^T bases for the start and for the first update; ours takes it once.
    monkeypatch.setattr(NMF, "_iterate", MatrixDecomposition._iterate)
    for module in model.modules():
        if type(module).__name__ == "DilatedDepthwiseConv":
            module.__class__ = torch.nn.Conv2d  # what it does on a GPU
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 3, 64, 96))
    flops = {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}
    counts = count_multiply_adds(shapes_of(config), 64, 96)
    assert flops["aten.convolution"] == 2 * counts.conv
    assert flops["aten.bmm"] == 2 * counts.product


def test_steps_and_sizes_count() -> None:
    def total(height: int = 64, **changes: int) -> int:
        return count_multiply_adds(shapes_of(replace(LIGHT_HAM, **changes)), height, 64).total

    assert total(eval_steps=8) - total() == total() - total(eval_steps=6) > 0
    assert total(rank=64) > total()
    assert 1.9 < total(128) / total() < 2.1
    with pytest.raises(ValueError, match="images are 31x64"):
        total(31)

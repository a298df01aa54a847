"""The published test: an image at one or several sizes, mirrored or not, to one label map of its own size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hamgan.device import Autocast, release_memory
from hamgan.segmentation.augment import normalize, resize_image, scaled_size
from hamgan.segmentation.dataset import LabelledImages, Sample
from hamgan.segmentation.loader import read_ahead
from hamgan.segmentation.model import Segmentor

PUBLISHED_RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@dataclass(frozen=True, kw_only=True)
class TestConfig:
    """How images are shown to a network in a test. The defaults are Light-Ham's single scale."""

    __test__ = False  # no class of tests, whatever its name begins with

    scale: tuple[int, ...] = (2048, 512)
    """Longest long and short side, pixels, at ratio 1, the aspect kept; empty: the image's own size."""
    ratios: tuple[float, ...] = (1.0,)
    """Of the scale, one view each; published: 0.5,0.75,1,1.25,1.5,1.75."""
    flip: bool = False
    """Whether every view is taken mirrored too."""
    multiple: int = 32
    """Sides are rounded up to multiples of this, by a second resize; 1: they are not (HamNet)."""

    def __post_init__(self) -> None:
        if len(self.scale) not in (0, 2) or any(side < 1 for side in self.scale):
            raise ValueError(
                f"scale is {list(self.scale)}; it must be empty or a long and a short side, such as 2048,512"
            )
        if not self.ratios or any(ratio <= 0 for ratio in self.ratios):
            raise ValueError(f"ratios is {list(self.ratios)}; it must be one or more numbers > 0")
        if self.multiple < 1:
            raise ValueError(f"multiple is {self.multiple}; it must be at least 1")

    def multi_scale(self) -> "TestConfig":
        """Return the published multi-scale and flip protocol with this scale."""
        return replace(self, ratios=PUBLISHED_RATIOS, flip=True)

    @property
    def name(self) -> str:
        """Its name on a card."""
        views = "single scale" if len(self.ratios) == 1 else f"{len(self.ratios)} scales"
        return views + (" and flip" if self.flip else "")


BAND_PIXELS = 1 << 14
"""Pixels of the image whose scores are taken at a time, in whole rows."""


@torch.inference_mode()
def predict(model: Segmentor, image: NDArray[np.uint8], test: TestConfig, autocast: Autocast) -> NDArray[np.uint8]:
    """Classify every pixel of an image.

    Several views are averaged as probabilities, one after the other. What is kept from view to view is their sum; a view's
    scores at the image's size are taken for a band of rows at a time.

    Args:
        model: In evaluation mode.
        image: (H, W, 3), 0..255.
        test: The views.
        autocast: Opens the precision context of the network.

    Returns:
        Classes, (H, W).

    Raises:
        ValueError: If a view is smaller than the network's stride.

    Source: MMSegmentation's MultiScaleFlipAug and whole-image inference, which the published figures were taken with.
    """
    device = next(model.parameters()).device
    pixels = torch.from_numpy(image).permute(2, 0, 1).to(device)
    views = [(ratio, flip) for ratio in test.ratios for flip in ((False, True) if test.flip else (False,))]
    if len(views) == 1:
        bands = _view_scores(model, pixels, *views[0], test, autocast)
        return torch.cat([scores.argmax(0).to(torch.uint8) for _, scores in bands]).cpu().numpy()
    total = torch.zeros(
        image.shape[0], model.config.num_classes, image.shape[1], device=device
    )  # a band is in one piece
    for ratio, flip in views:
        for rows, scores in _view_scores(model, pixels, ratio, flip, test, autocast):
            total[rows] += scores.softmax(0).movedim(1, 0)
            del scores
        release_memory(device)
    return total.argmax(1).to(torch.uint8).cpu().numpy()


def _view_scores(
    model: Segmentor, pixels: Tensor, ratio: float, flip: bool, test: TestConfig, autocast: Autocast
) -> Iterator[tuple[slice, Tensor]]:
    """Yield bands of rows of the image with a view's logits there, not mirrored, (num_classes, rows, W).

    The published code resizes the head's logits to the view's size and from there to the image's. Both are linear and act on
    rows and columns apart, so that a matrix for each does the two at once.
    """
    height, width = pixels.shape[1:]
    view = resize_image(pixels, *scaled_size(height, width, test.scale, ratio))
    rounded = [-(-side // test.multiple) * test.multiple for side in view.shape[1:]]
    view = normalize(resize_image(view, *rounded))[None].contiguous(memory_format=torch.channels_last)
    if flip:
        view = view.flip(3)
    with autocast():
        coarse = model.coarse_logits(view)[0].float().contiguous()
    del view
    align = model.config.align_corners
    down = resize_matrix((coarse.shape[1], rounded[0], height), align_corners=align)
    across = resize_matrix((coarse.shape[2], rounded[1], width), align_corners=align).to(coarse.device)
    if flip:
        across = across.flip(0)
    wide = coarse @ across.T
    step = max(BAND_PIXELS // width, 1)
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        read = down[rows].any(0).nonzero()  # a band lies between few of the coarse rows
        sources = slice(int(read[0]), int(read[-1]) + 1)
        yield rows, down[rows, sources].to(wide.device) @ wide[:, sources]


def resize_matrix(lengths: Sequence[int], *, align_corners: bool) -> Tensor:
    """Return the matrix, (last, first), that resizes one side linearly from the first of some lengths to each of the others."""
    points = torch.eye(lengths[0])[None, :, :, None]
    for length in lengths[1:]:
        if points.shape[2] != length:
            points = F.interpolate(points, (length, 1), mode="bilinear", align_corners=align_corners)
    return points[0, :, :, 0].T


class Prediction(NamedTuple):
    """One image of a test."""

    place: int
    """Its index in the data set."""
    sample: Sample
    classes: NDArray[np.uint8]
    """Predicted, (H, W)."""


def predictions(
    model: Segmentor,
    data: LabelledImages,
    indices: Sequence[int],
    test: TestConfig,
    *,
    autocast: Autocast,
    num_workers: int = 0,
) -> Iterator[Prediction]:
    """Yield the predictions of some images of a data set, one after the other.

    Args:
        model: In evaluation mode.
        data: The images.
        indices: Which of them.
        test: The views.
        autocast: Opens the precision context of the network.
        num_workers: Processes that read images ahead; 0: this one reads.

    Raises:
        OSError: If an image or a mask is missing.
        ValueError: If one is bad, or smaller than the network's stride; names it.
    """
    for index, sample in read_ahead(data, indices, num_workers):
        try:
            classes = predict(model, sample.image, test, autocast)
        except ValueError as error:
            raise ValueError(f"{data.name(index)}: {error}") from None
        yield Prediction(index, sample, classes)

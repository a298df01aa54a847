"""The published test: an image at one or several sizes, mirrored or not, to one label map of its own size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hamgan.device import Autocast
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


@torch.inference_mode()
def predict(model: Segmentor, image: NDArray[np.uint8], test: TestConfig, autocast: Autocast) -> NDArray[np.uint8]:
    """Classify every pixel of an image.

    Several views are averaged as probabilities, one after the other: memory does not grow with their number.

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
        return _classes(_logits(model, pixels, *views[0], test, autocast))
    total = torch.zeros(model.config.num_classes, *image.shape[:2], device=device)
    for ratio, flip in views:
        # No name holds one view's maps while the next one is computed.
        total += _logits(model, pixels, ratio, flip, test, autocast).softmax(0)
    return _classes(total)


def _classes(scores: Tensor) -> NDArray[np.uint8]:
    """Return the best class of every pixel, (H, W), of (num_classes, H, W)."""
    return scores.argmax(0).to(torch.uint8).cpu().numpy()


def _logits(model: Segmentor, pixels: Tensor, ratio: float, flip: bool, test: TestConfig, autocast: Autocast) -> Tensor:
    """Return the logits of one view at the image's own size, not mirrored, (num_classes, H, W)."""
    height, width = pixels.shape[1:]
    view = resize_image(pixels, *scaled_size(height, width, test.scale, ratio))
    rounded = [-(-side // test.multiple) * test.multiple for side in view.shape[1:]]
    view = normalize(resize_image(view, *rounded))[None].contiguous(memory_format=torch.channels_last)
    with autocast():
        logits = model(view.flip(3) if flip else view)
    size = (height, width)
    logits = F.interpolate(logits.float(), size, mode="bilinear", align_corners=model.config.align_corners)
    return (logits.flip(3) if flip else logits)[0]


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

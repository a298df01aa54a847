"""What is done to an image before a network sees it: the published augmentation in training, normalisation always.

Every draw comes from a generator that the caller seeds for one sample of one step (`loader.sample_generator`), so that a
resumed run sees what the undisturbed one would have seen.

Source: Geng et al. 2021 and Guo et al. 2022 train with MMSegmentation's pipeline, which is what is computed here.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from hamgan.segmentation.dataset import IGNORED, MEAN, STD, Sample

CROP_ATTEMPTS = 10
"""Crops drawn to find one without a class that fills too much of it."""
DISTORTION_PROBABILITY = 0.5
"""Of each of the photometric distortions."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """The augmentation. The defaults are those of the published ADE20K recipes."""

    scale: tuple[int, ...] = (2048, 512)
    """Longest long and short side after scaling, pixels, at ratio 1, the aspect kept; empty: the image's own size."""
    ratios: tuple[float, ...] = (0.5, 2.0)
    """Between these two a ratio is drawn that multiplies the scale; more than two: one of them is drawn."""
    crop: int = 512
    """Height and width of the crop, pixels; smaller images are padded with 0 after normalisation, labels with 255."""
    max_class_share: float = 0.75
    """Largest share of a crop's labelled pixels that one class may fill; crops are drawn up to 10 times; 1: any crop."""
    flip: bool = True
    """Whether images are mirrored with probability one half."""
    brightness: float = 32.0
    """Largest addition to all channels, of 255; 0: none."""
    contrast: tuple[float, float] = (0.5, 1.5)
    """Smallest and largest factor of contrast."""
    saturation: tuple[float, float] = (0.5, 1.5)
    """Smallest and largest factor of saturation."""
    hue: float = 18.0
    """Largest turn of the hue, of 180; 0: none."""

    def __post_init__(self) -> None:
        if len(self.scale) not in (0, 2) or any(side < 1 for side in self.scale):
            raise ValueError(
                f"scale is {list(self.scale)}; it must be empty or a long and a short side, such as 2048,512"
            )
        if len(self.ratios) < 2 or any(ratio <= 0 for ratio in self.ratios):
            raise ValueError(f"ratios is {list(self.ratios)}; it must be two or more numbers > 0")
        if self.crop < 1:
            raise ValueError(f"crop is {self.crop}; it must be at least 1")
        if not 0 < self.max_class_share <= 1:
            raise ValueError(f"max_class_share is {self.max_class_share}; it must be in (0, 1]")
        for name, limit in (("brightness", 255), ("hue", 90)):
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, {limit}]")
        for name in ("contrast", "saturation"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name} is {[low, high]}; it must be two numbers, 0 <= low <= high")


def augment(sample: Sample, config: AugmentConfig, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Scale, crop, mirror, distort, normalise and pad one sample.

    Args:
        sample: An image and its labels.
        config: What is done.
        rng: Of this sample in this step.

    Returns:
        The image, (3, crop, crop), float32, normalised; the labels, (crop, crop), int64.
    """
    image = torch.from_numpy(sample.image).permute(2, 0, 1)
    labels = torch.from_numpy(sample.labels)[None]
    ratio = rng.uniform(*config.ratios) if len(config.ratios) == 2 else rng.choice(config.ratios)
    height, width = scaled_size(image.shape[1], image.shape[2], config.scale, float(ratio))
    image = resize_image(image, height, width)
    labels = TF.resize(labels, [height, width], InterpolationMode.NEAREST)
    top, left = _draw_crop(labels[0].numpy(), config, rng)
    box = (top, left, min(config.crop, height), min(config.crop, width))
    image, labels = TF.crop(image, *box), TF.crop(labels, *box)
    if config.flip and rng.random() < 0.5:
        image, labels = TF.horizontal_flip(image), TF.horizontal_flip(labels)
    image = normalize(_distort(image.float(), config, rng))
    padding = [0, 0, config.crop - box[3], config.crop - box[2]]
    return TF.pad(image, padding, fill=0.0), TF.pad(labels, padding, fill=IGNORED)[0].long()


def scaled_size(height: int, width: int, scale: tuple[int, ...], ratio: float) -> tuple[int, int]:
    """Return the largest height and width of the same aspect whose sides are within ratio times the scale's.

    Args:
        height: Of the image, pixels.
        width: Of the image, pixels.
        scale: Long and short side; empty: the image's own.
        ratio: Multiplies both, rounded down (the published code).
    """
    if not scale:
        return max(int(height * ratio + 0.5), 1), max(int(width * ratio + 0.5), 1)
    long, short = int(max(scale) * ratio), int(min(scale) * ratio)
    factor = min(long / max(height, width), short / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def resize_image(image: Tensor, height: int, width: int) -> Tensor:
    """Resize uint8 (3, H, W) bilinearly between pixel centres, without antialias, as OpenCV does."""
    return TF.resize(image, [height, width], InterpolationMode.BILINEAR, antialias=False)


def normalize(image: Tensor) -> Tensor:
    """Subtract the mean and divide by the deviation: (3, H, W) of 0..255 to float32."""
    return TF.normalize(image.float(), list(MEAN), list(STD))


def _draw_crop(labels: NDArray[np.uint8], config: AugmentConfig, rng: np.random.Generator) -> tuple[int, int]:
    """Draw a crop's top and left, anew while one class fills too much of it."""
    spare = [max(side - config.crop, 0) for side in labels.shape]
    place = (0, 0)
    for _ in range(CROP_ATTEMPTS):
        place = (int(rng.integers(spare[0] + 1)), int(rng.integers(spare[1] + 1)))
        if config.max_class_share == 1:
            break
        crop = labels[place[0] : place[0] + config.crop, place[1] : place[1] + config.crop]
        counts = np.bincount(crop.ravel(), minlength=IGNORED + 1)[:IGNORED]
        if np.count_nonzero(counts) > 1 and counts.max() < config.max_class_share * counts.sum():
            break
    return place


def _distort(image: Tensor, config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue of (3, H, W) in 0..255, each in one sample of two.

    Contrast comes before saturation and hue, or after them, in one sample of two.
    """
    if config.brightness and rng.random() < DISTORTION_PROBABILITY:
        image = (image + rng.uniform(-config.brightness, config.brightness)).clamp(0, 255)
    contrast = float(rng.uniform(*config.contrast)) if rng.random() < DISTORTION_PROBABILITY else 1.0
    contrast_first = rng.random() < 0.5
    if contrast_first and contrast != 1:
        image = (image * contrast).clamp(0, 255)
    if rng.random() < DISTORTION_PROBABILITY:
        image = scale_saturation(image, float(rng.uniform(*config.saturation)))
    if config.hue and rng.random() < DISTORTION_PROBABILITY:
        turn = rng.uniform(-config.hue, config.hue) / 180
        image = TF.adjust_hue(image / 255, turn) * 255
    if not contrast_first and contrast != 1:
        image = (image * contrast).clamp(0, 255)
    return image


def scale_saturation(image: Tensor, factor: float) -> Tensor:
    """Multiply the saturation S of the HSV of (3, H, W), up to 1; hue and value stay.

    A channel is V (1 - S g) with g given by the hue alone, so its distance from V scales as S does.
    """
    value = image.amax(0, keepdim=True)
    chroma = value - image.amin(0, keepdim=True)
    factors = torch.clamp(value / chroma.clamp_min(1e-6), max=factor) if factor > 1 else factor
    return value - (value - image) * factors

"""Differentiable augmentation of real and generated images before the discriminator.

Source: Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training"; ranges of its public code.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["color", "translation", "cutout"]

NUM_RANDOM = 7
"""Uniform numbers that one image's augmentation takes."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is done to both real and generated images before the discriminator sees them."""

    kinds: tuple[Kind, ...] = ()
    """color: brightness, saturation and contrast; translation: a shift, zero-filled; cutout: a square set to 0."""
    translation: float = 0.125
    """Largest shift, a fraction of the side."""
    cutout: float = 0.5
    """Side of the cut square, a fraction of the image's."""

    def __post_init__(self) -> None:
        for name in ("translation", "cutout"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"augment.{name} is {getattr(self, name)}; it must be in (0, 1]")


def augment(images: Tensor, random: Tensor, config: AugmentConfig) -> Tensor:
    """Augment each image by its own random numbers; differentiable in the images.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        random: Uniform in [0, 1), (B, NUM_RANDOM), on the images' device.
        config: What to do.

    Returns:
        (B, 3, H, W), in the images' dtype.
    """
    if "color" in config.kinds:
        images = _color(images, random[:, 0:3])
    if "translation" in config.kinds:
        images = _translate(images, random[:, 3:5], config.translation)
    if "cutout" in config.kinds:
        images = images * _cutout_mask(images, random[:, 5:7], config.cutout)
    return images


def flip(images: Tensor, random: Tensor) -> Tensor:
    """Mirror the images (B, 3, H, W) whose random number (B,) is below one half."""
    return torch.where((random < 0.5)[:, None, None, None], images.flip(3), images)


def _color(images: Tensor, random: Tensor) -> Tensor:
    """Brightness +-0.5, then saturation times 0..2, then contrast times 0.5..1.5."""
    brightness, saturation, contrast = (column[:, None, None, None].to(images.dtype) for column in random.unbind(1))
    images = images + (brightness - 0.5)
    images = torch.lerp(images.mean(1, keepdim=True), images, saturation * 2)
    return torch.lerp(images.mean((1, 2, 3), keepdim=True), images, contrast + 0.5)


def _translate(images: Tensor, random: Tensor, fraction: float) -> Tensor:
    """Shift by whole pixels up to a fraction of the side, filling with 0.

    A shift is a product with a matrix of zeros and ones on either side of the image: exact, and its gradient is a product
    too, where gathering pixels would scatter them one by one on the way back.
    """
    height, width = images.shape[2:]
    down = _shift_matrix(height, random[:, 0], fraction).to(images.dtype)
    right = _shift_matrix(width, random[:, 1], fraction).to(images.dtype)
    return torch.einsum("bij,bcjk,blk->bcil", down, images, right)


def _shift_matrix(size: int, random: Tensor, fraction: float) -> Tensor:
    """(B, size, size) with entry (i, j) 1 where pixel j moves to i."""
    largest = int(size * fraction + 0.5)
    shift = (random * (2 * largest + 1)).floor().long() - largest
    place = torch.arange(size, device=random.device)
    return (place[None, :, None] - shift[:, None, None]) == place[None, None, :]


def _cutout_mask(images: Tensor, random: Tensor, fraction: float) -> Tensor:
    """(B, 1, H, W): 0 inside a square whose centre is uniform over the image, 1 elsewhere."""
    height, width = images.shape[2:]
    masks = []
    for size, column in ((height, random[:, 0]), (width, random[:, 1])):
        side = int(size * fraction + 0.5)
        start = (column * (size + 1 - side % 2)).floor()[:, None] - side // 2
        place = torch.arange(size, device=images.device)[None]
        masks.append((place >= start) & (place < start + side))
    inside = masks[0][:, :, None] & masks[1][:, None, :]
    return (~inside)[:, None].to(images.dtype)

"""Images side by side in one picture."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from hamgan.checkpoint import write_atomically
from hamgan.sampling.png import encode_pngs

GAP = 2
"""Pixels between the images of a grid, white."""


def make_grid(images: Tensor, num_columns: int) -> Tensor:
    """Lay uint8 images (N, 3, H, W) out row by row, (3, rows * (H + GAP) - GAP, columns * (W + GAP) - GAP)."""
    count, channels, height, width = images.shape
    num_rows = -(-count // num_columns)
    grid = torch.full(
        (channels, num_rows * (height + GAP) - GAP, num_columns * (width + GAP) - GAP), 255, dtype=torch.uint8
    )
    for index, image in enumerate(images):
        top, left = index // num_columns * (height + GAP), index % num_columns * (width + GAP)
        grid[:, top : top + height, left : left + width] = image
    return grid


def as_picture(image: Tensor) -> Image.Image:
    """Turn uint8 (3, H, W) into a Pillow image."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def enlarge(images: Tensor, zoom: int) -> Tensor:
    """Repeat every pixel of (..., H, W) zoom times in both directions: nothing is smoothed that G did not smooth."""
    return images if zoom == 1 else images.repeat_interleave(zoom, -2).repeat_interleave(zoom, -1)


def save_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture as PNG, atomically; its folder is made.

    Raises:
        OSError: If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: picture.save(file, format="PNG", optimize=True))


def save_png(path: Path, image: Tensor) -> None:
    """Write uint8 (3, H, W) as PNG; as `save_picture`, but fast: looking for the smallest file took longer than drawing it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    [content] = encode_pngs(image[None])
    write_atomically(path, lambda file: file.write(content))

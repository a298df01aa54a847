"""Images side by side in one picture, or together in an archive."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hamgan.checkpoint import write_atomically

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


def save_png(path: Path, image: Tensor) -> None:
    """Write uint8 (3, H, W) as PNG, atomically.

    Raises:
        OSError: If it cannot be written.
    """
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    write_atomically(path, lambda file: picture.save(file, format="PNG"))


def save_npz(path: Path, images: Tensor, labels: Sequence[int], seeds: Sequence[int]) -> None:
    """Write `arr_0` (N, H, W, 3) uint8, `labels` and `seeds` int64 to an .npz, atomically; others read the same names."""
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    y, s = np.asarray(labels, dtype=np.int64), np.asarray(seeds, dtype=np.int64)
    write_atomically(path, lambda file: np.savez(file, arr_0=pixels, labels=y, seeds=s))

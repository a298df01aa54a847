"""A tiny extractor and labelled images, importable by test processes as well."""

import numpy as np
import torch
from numpy.typing import NDArray

from hamgan.metrics.extractors import Extractor


class TinyNetwork(torch.nn.Module):
    """Means over a 2 x 2 grid, mixed by fixed random weights: 12 features, 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.mix = torch.nn.Parameter(torch.randn(12, 12, generator=generator))
        self.head = torch.nn.Parameter(torch.randn(12, 5, generator=generator))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pool = torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1) @ self.mix
        return pool, pool @ self.head


def make_tiny_extractor(name: str = "tiny", protocol: str = "plain") -> Extractor:
    """An extractor that takes no time, for everything that is not about a network."""
    return Extractor(
        name=name,
        protocol=protocol,
        dim=12,
        num_classes=5,
        weights_sha256="0" * 64,
        preprocess=lambda images: images.float() / 255,
        network=TinyNetwork(),
    )


def labelled_images(
    n: int, *, seed: int, size: int = 8, num_classes: int = 3
) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Noise around a colour for each class, uint8 (n, 3, size, size), and the classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, n)
    base = np.random.default_rng(7).uniform(40, 210, (num_classes, 3))
    pixels = base[labels][:, :, None, None] + rng.normal(scale=25, size=(n, 3, size, size))
    return torch.from_numpy(pixels.round().clip(0, 255).astype(np.uint8)), labels

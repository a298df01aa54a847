"""Images from a generator, each depending on its own latent and class alone."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from hamgan.sampling.latents import seeded_latents

CHUNK = 16
"""Images a forward pass on a CPU. Always this many, the last chunk padded: kernels may sum in another order for another batch
size, so a fixed size makes image number s the same to the last bit whatever is drawn beside it."""

DEVICE_CHUNK = 64
"""Likewise on a GPU, which 16 images would leave idle."""


def chunk_size(device: torch.device) -> int:
    """Return how many images pass at once on a device."""
    return CHUNK if device.type == "cpu" else DEVICE_CHUNK


class DrawsImages(Protocol):
    """What a generator must be here: G(z, y) gives images in [-1, 1]; its config has z_dim, num_classes and resolution."""

    @property
    def config(self) -> Any: ...

    @property
    def parameters(self) -> Callable[[], Iterator[Tensor]]: ...

    def __call__(self, z: Tensor, y: Tensor) -> Tensor: ...


def to_uint8(images: Tensor) -> Tensor:
    """Map [-1, 1] to 0..255, rounding to nearest: floor(127.5 x + 128), clamped."""
    return (images.float() * 127.5 + 128).floor().clamp(0, 255).to(torch.uint8)


@torch.inference_mode()
def draw_latents(G: DrawsImages, z: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Draw image i from latent i and class i.

    Args:
        G: In evaluation mode.
        z: (N, z_dim).
        y: Classes, int64 (N,); or mixtures of classes, weights (N, num_classes).

    Yields:
        uint8 (n, 3, resolution, resolution), on the CPU, n at most `chunk_size`.

    Raises:
        ValueError: If there are not as many classes as latents.
    """
    if len(z) != len(y):
        raise ValueError(f"{len(z)} latents and {len(y)} classes; one of each an image is needed")
    device = next(G.parameters()).device
    chunk = chunk_size(device)
    for start in range(0, len(z), chunk):
        count = min(chunk, len(z) - start)
        index = start + torch.arange(chunk).clamp_max(count - 1)
        yield to_uint8(G(z[index].to(device), y[index].to(device))[:count]).cpu()


def draw_chunks(
    G: DrawsImages,
    seeds: Sequence[int],
    classes: Sequence[int],
    truncation: float | None = None,
    z_scale: float = 1.0,
) -> Iterator[Tensor]:
    """Draw image i from seed i and class i.

    Args:
        G: In evaluation mode.
        seeds: One an image.
        classes: One an image, in [0, num_classes).
        truncation: As in `seeded_latents`.
        z_scale: Likewise.

    Yields:
        As `draw_latents`.

    Raises:
        ValueError: If there are not as many classes as seeds, or a value is out of range.
    """
    if len(seeds) != len(classes):
        raise ValueError(f"{len(seeds)} seeds and {len(classes)} classes; one of each an image is needed")
    chunk = chunk_size(next(G.parameters()).device)
    for start in range(0, len(seeds), chunk):
        z = seeded_latents(seeds[start : start + chunk], G.config.z_dim, truncation, z_scale)
        yield from draw_latents(G, z, torch.tensor(classes[start : start + chunk]))


def draw_images(
    G: DrawsImages,
    seeds: Sequence[int],
    classes: Sequence[int],
    truncation: float | None = None,
    z_scale: float = 1.0,
) -> Tensor:
    """Draw all images at once, uint8 (N, 3, resolution, resolution); arguments as in `draw_chunks`."""
    return joined(G, draw_chunks(G, seeds, classes, truncation, z_scale))


def joined(G: DrawsImages, chunks: Iterator[Tensor]) -> Tensor:
    """Join what `draw_latents` or `draw_chunks` yields, uint8 (N, 3, resolution, resolution); N may be 0."""
    parts = list(chunks)
    side = G.config.resolution
    return torch.cat(parts) if parts else torch.empty(0, 3, side, side, dtype=torch.uint8)

"""Standing statistics: batch norm's means and variances, measured for the latents that are sampled.

A truncated latent gives other activations than those that training averaged over, and batch norm with training's averages
turns them into washed-out images. BigGAN therefore measures the statistics anew for each truncation.

Source: Brock et al. 2019, appendix B; between two measured levels, the released BigGAN's linear blend.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from hamgan.nn.norm import BatchStatistics
from hamgan.sampling.latents import seeded_latents

Network = TypeVar("Network", bound=nn.Module)

FIRST_SEED = 2**62
"""Measuring draws from seeds that no one samples."""


@dataclass(frozen=True, kw_only=True)
class StandingStatistics:
    """Batch norm's statistics for one truncation."""

    truncation: float | None
    """BigGAN's truncation that they are for; None: the plain normal."""
    num_images: int
    """Images that they were measured on."""
    batch_size: int
    """Images that were normalised together."""
    tensors: dict[str, Tensor]
    """Every running mean and variance by its name in the generator's state."""

    @property
    def label(self) -> str:
        """The level as text: `0.5`, or `none`."""
        return "none" if self.truncation is None else f"{self.truncation:g}"


def running_names(G: nn.Module) -> list[str]:
    """Return the names of all running means and variances in a network's state."""
    return [
        f"{name}.{kind}"
        for name, module in G.named_modules()
        if isinstance(module, BatchStatistics)
        for kind in ("running_mean", "running_var")
    ]


class _Moments:
    """Mean and variance of each channel over batches, joined exactly in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.deviation = torch.zeros(())

    def add(self, x: Tensor) -> None:
        count = x.numel() // x.shape[1]
        var, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        mean, deviation = mean.double(), var.double() * count
        total = self.count + count
        shift = mean - self.mean
        self.deviation = self.deviation + deviation + shift.square() * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total


@contextmanager
def _watched(network: nn.Module) -> Iterator[dict[str, _Moments]]:
    """Gather the moments of what every batch norm is given."""
    moments: dict[str, _Moments] = {}
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, BatchStatistics):
            found = moments[name] = _Moments()
            handles.append(module.register_forward_pre_hook(lambda _, inputs, found=found: found.add(inputs[0])))
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def measure_standing_statistics(
    G: nn.Module,
    *,
    z_dim: int,
    num_classes: int,
    truncation: float | None,
    num_images: int = 6400,
    batch_size: int = 128,
    progress: Callable[[int], object] | None = None,
) -> StandingStatistics:
    """Measure the statistics at one truncation: each batch is normalised by its own, and all are joined into one.

    Everything else stays as in evaluation: the ham starts from its stored bases, spectral norm keeps its vectors. Latents
    are seeded and classes uniform, so that the same arguments give the same statistics.

    Args:
        G: In evaluation mode; left as it is.
        z_dim: Of the generator.
        num_classes: Of the generator.
        truncation: As in `seeded_latents`.
        num_images: Measured on; rounded up to whole batches.
        batch_size: Images normalised together.
        progress: Told the number of images of each finished batch.

    Raises:
        ValueError: If truncation or a count is out of range.
    """
    for key, value in {"num_images": num_images, "batch_size": batch_size}.items():
        if value < 2:
            raise ValueError(f"{key} is {value}; it must be at least 2")
    network = copy.deepcopy(G)
    for module in network.modules():
        if isinstance(module, BatchStatistics):
            module.train()
    device = next(network.parameters()).device
    chooser = torch.Generator().manual_seed(0)
    num_batches = -(-num_images // batch_size)
    with _watched(network) as moments:
        for batch in range(num_batches):
            first = FIRST_SEED + batch * batch_size
            z = seeded_latents(range(first, first + batch_size), z_dim, truncation)
            y = torch.randint(num_classes, (batch_size,), generator=chooser)
            network(z.to(device), y.to(device))
            if progress is not None:
                progress(batch_size)
    tensors = {}
    for name, found in moments.items():
        tensors[f"{name}.running_mean"] = found.mean.float().cpu()
        tensors[f"{name}.running_var"] = (found.deviation / max(found.count - 1, 1)).float().cpu()
    return StandingStatistics(
        truncation=truncation, num_images=num_batches * batch_size, batch_size=batch_size, tensors=tensors
    )


def statistics_at(levels: Sequence[StandingStatistics], truncation: float | None) -> StandingStatistics | None:
    """Return the statistics for a truncation: measured ones, or a linear blend of the two levels around it.

    Nothing is extrapolated, and nothing blended with the plain normal's.

    Args:
        levels: Measured.
        truncation: Wanted.

    Returns:
        None where the levels do not reach.
    """
    if truncation is None:
        return next((level for level in levels if level.truncation is None), None)
    known = sorted((level.truncation, index) for index, level in enumerate(levels) if level.truncation is not None)
    below = [(value, index) for value, index in known if value <= truncation]
    above = [(value, index) for value, index in known if value >= truncation]
    if not below or not above:
        return None
    (low, first), (high, second) = below[-1], above[0]
    if low == high:
        return levels[first]
    weight = (truncation - low) / (high - low)
    tensors = {
        name: tensor.lerp(levels[second].tensors[name], weight) for name, tensor in levels[first].tensors.items()
    }
    return StandingStatistics(
        truncation=truncation,
        num_images=min(levels[first].num_images, levels[second].num_images),
        batch_size=levels[first].batch_size,
        tensors=tensors,
    )


def with_statistics(G: Network, statistics: StandingStatistics) -> Network:
    """Return a generator with other batch-norm statistics that shares its weights with the one handed in.

    Raises:
        ValueError: If they are another network's.
    """
    # Parameters are put into the memo, so that the copy refers to them; the buffers become its own.
    network = copy.deepcopy(G, {id(parameter): parameter for parameter in G.parameters()})
    if set(running_names(network)) != set(statistics.tensors):
        raise ValueError("standing statistics of another network: the names of the batch norms differ")
    buffers = dict(network.named_buffers())
    with torch.no_grad():
        for name, tensor in statistics.tensors.items():
            buffers[name].copy_(tensor)
    return network

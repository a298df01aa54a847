"""From a resolution to the blocks of a network: channels, resolutions, and where the context block sits."""

from collections.abc import Sequence
from dataclasses import dataclass

GENERATOR_MULTIPLIERS: dict[int, tuple[int, ...]] = {
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
}
"""Channels at 4x4 and after each block, in units of `channels` (Brock et al. 2019, tables 4 to 6; 32: BigGAN-PyTorch)."""

DISCRIMINATOR_MULTIPLIERS: dict[int, tuple[int, ...]] = {
    32: (4, 4, 4, 4),
    64: (1, 2, 4, 8, 16),
    128: (1, 2, 4, 8, 16, 16),
    256: (1, 2, 4, 8, 8, 16, 16),
}
"""Channels after each block, in units of `channels`."""

NUM_DOWNSAMPLING: dict[int, int] = {32: 2, 64: 4, 128: 5, 256: 6}
"""How many of the discriminator's blocks halve the resolution; the first ones."""


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """One residual block and what follows it."""

    in_channels: int
    out_channels: int
    resolution: int
    """Height and width of the block's output, pixels."""
    resampling: bool
    """Whether the block doubles (generator) or halves (discriminator) the resolution."""
    context: bool
    """Whether a context block follows."""


def generator_plan(
    resolution: int, channels: int, multipliers: Sequence[int], context_resolutions: Sequence[int]
) -> tuple[BlockPlan, ...]:
    """Plan the generator's blocks, from 4x4 up.

    Args:
        resolution: Of the images, pixels.
        channels: Unit of width.
        multipliers: Widths at 4x4 and after each block; empty: the published ones.
        context_resolutions: A context block follows every block whose output has one of these resolutions.

    Raises:
        ValueError: If a value is not allowed; names the key.
    """
    multipliers = _checked_multipliers("generator", resolution, multipliers, GENERATOR_MULTIPLIERS)
    resolutions = [8 * 2**index for index in range(len(multipliers) - 1)]
    _check_context("generator", context_resolutions, resolutions)
    return tuple(
        BlockPlan(
            in_channels=multipliers[index] * channels,
            out_channels=multipliers[index + 1] * channels,
            resolution=size,
            resampling=True,
            context=size in context_resolutions,
        )
        for index, size in enumerate(resolutions)
    )


def discriminator_plan(
    resolution: int, channels: int, multipliers: Sequence[int], context_resolutions: Sequence[int]
) -> tuple[BlockPlan, ...]:
    """Plan the discriminator's blocks, from the image down; arguments and errors as in `generator_plan`."""
    multipliers = _checked_multipliers("discriminator", resolution, multipliers, DISCRIMINATOR_MULTIPLIERS)
    num_downsampling = NUM_DOWNSAMPLING[resolution]
    resolutions = [resolution // 2 ** min(index + 1, num_downsampling) for index in range(len(multipliers))]
    _check_context("discriminator", context_resolutions, resolutions)
    return tuple(
        BlockPlan(
            in_channels=3 if index == 0 else multipliers[index - 1] * channels,
            out_channels=multiplier * channels,
            resolution=resolutions[index],
            resampling=index < num_downsampling,
            context=resolutions[index] in context_resolutions,
        )
        for index, multiplier in enumerate(multipliers)
    )


def _checked_multipliers(
    network: str, resolution: int, multipliers: Sequence[int], published: dict[int, tuple[int, ...]]
) -> tuple[int, ...]:
    if resolution not in published:
        raise ValueError(f"{network}.resolution is {resolution}; allowed are {', '.join(map(str, published))}")
    if not multipliers:
        return published[resolution]
    expected = len(published[resolution])
    if len(multipliers) != expected or min(multipliers) < 1:
        raise ValueError(
            f"{network}.channel_multipliers is {list(multipliers)}; at resolution {resolution} it needs {expected} "
            "positive numbers"
        )
    return tuple(multipliers)


def _check_context(network: str, context_resolutions: Sequence[int], resolutions: Sequence[int]) -> None:
    for size in context_resolutions:
        if size not in resolutions:
            allowed = ", ".join(str(value) for value in dict.fromkeys(resolutions))
            raise ValueError(f"{network}.context_resolutions has {size}; its blocks put out {allowed}")

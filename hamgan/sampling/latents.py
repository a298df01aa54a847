"""Latents that depend on nothing but their seed."""

import difflib
import re
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_SEEDS = 10_000_000
"""Seeds in one range of a command."""


def seeded_latents(seeds: Sequence[int], z_dim: int, truncation: float | None = None) -> Tensor:
    """Draw one latent a seed.

    Args:
        seeds: Non-negative, below 2**63.
        z_dim: Length of a latent.
        truncation: BigGAN's: components whose magnitude exceeds it are drawn again until none does. Scaling z is a
            different thing.

    Returns:
        (len(seeds), z_dim), float32, on the CPU; row i is the same whatever the other seeds.

    Raises:
        ValueError: If truncation is not positive, or so small that drawing again would not end soon.

    Source: Brock et al. 2019, section 3.1.
    """
    if truncation is not None and not truncation >= 0.02:
        raise ValueError(f"truncation is {truncation}; it must be at least 0.02")
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(z_dim, generator=generator)
        while truncation is not None and bool((outside := z.abs() > truncation).any()):
            z[outside] = torch.randn(int(outside.sum()), generator=generator)
        rows.append(z)
    return torch.stack(rows) if rows else torch.empty(0, z_dim)


def parse_seeds(text: str) -> list[int]:
    """Read `0-63,100,7` into seeds, in the order given.

    Raises:
        ValueError: If a part is neither a number nor a range upwards.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not 0 <= last - first < MAX_SEEDS:
            raise ValueError(
                f"--seeds has '{part.strip()}'; allowed are numbers below 10**18 and ranges upwards of at most "
                f"{MAX_SEEDS:,} seeds, such as 0-63,100"
            )
        seeds.extend(range(first, last + 1))
    return seeds


def parse_classes(text: str, class_names: Sequence[str], num_classes: int) -> list[int]:
    """Read class names, numbers and ranges of numbers, separated by commas, into class indices.

    Raises:
        ValueError: If a class is unknown; the nearest name is offered.
    """
    classes = []
    for part in (part.strip() for part in text.split(",")):
        if part in class_names:
            classes.append(list(class_names).index(part))
        elif (match := re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part)) and int(match[1]) <= (
            last := int(match[2] or match[1])
        ) < num_classes:
            classes.extend(range(int(match[1]), last + 1))
        else:
            near = difflib.get_close_matches(part, class_names, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            names = (
                f" and {', '.join(class_names[:12])}{', ...' if len(class_names) > 12 else ''}" if class_names else ""
            )
            raise ValueError(f"--classes has '{part}'; allowed are 0 to {num_classes - 1}{names}{hint}")
    return classes

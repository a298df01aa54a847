"""Latents that depend on nothing but their seed."""

import difflib
import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_SEEDS = 10_000_000
"""Seeds in one range of a command."""

TRUNCATION_RANGE = (0.02, 10.0)
"""Below, drawing again would not end soon; above, nothing is ever drawn again, and a percentage was probably meant."""


def seeded_latents(seeds: Sequence[int], z_dim: int, truncation: float | None = None, z_scale: float = 1.0) -> Tensor:
    """Draw one latent a seed.

    Args:
        seeds: Non-negative, below 2**63.
        z_dim: Length of a latent.
        truncation: BigGAN's: components whose magnitude exceeds it are drawn again until none does. None: the plain normal.
        z_scale: What the latent is then multiplied by: another way to trade variety for typical images, whose latents keep
            the normal's shape. Not what papers call truncation.

    Returns:
        (len(seeds), z_dim), float32, on the CPU; row i is the same whatever the other seeds.

    Raises:
        ValueError: If truncation or z_scale is out of range.

    Source: Brock et al. 2019, section 3.1.
    """
    check_truncation(truncation)
    if not (math.isfinite(z_scale) and 0 <= z_scale <= 10):
        raise ValueError(f"z_scale is {z_scale}; it must be in [0, 10]")
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(z_dim, generator=generator)
        while truncation is not None and bool((outside := z.abs() > truncation).any()):
            z[outside] = torch.randn(int(outside.sum()), generator=generator)
        rows.append(z)
    latents = torch.stack(rows) if rows else torch.empty(0, z_dim)
    return latents if z_scale == 1 else latents * z_scale


def check_truncation(truncation: float | None) -> None:
    """Refuse a truncation outside TRUNCATION_RANGE with a ValueError."""
    low, high = TRUNCATION_RANGE
    if truncation is not None and not low <= truncation <= high:
        raise ValueError(f"truncation is {truncation}; it must be in [{low}, {high:g}]")


def parse_truncations(text: str) -> list[float | None]:
    """Read `0.5,0.8`, `0.1..1.0` (in steps of 0.1), `0.2..2..0.2` (in steps of 0.2) and `none` into truncations.

    Raises:
        ValueError: If a part is none of these or out of range.
    """
    levels: list[float | None] = []
    for part in (part.strip() for part in text.split(",")):
        numbers = r"([0-9]*\.?[0-9]+)"
        if part == "none":
            levels.append(None)
        elif match := re.fullmatch(rf"{numbers}(?:\.\.{numbers}(?:\.\.{numbers})?)?", part):
            first, last, step = float(match[1]), float(match[2] or match[1]), float(match[3] or 0.1)
            if last < first or step <= 0 or (last - first) / step > 1000:
                raise ValueError(f"--truncations has '{part}'; a range goes upwards, in at most 1000 steps")
            # Counted and rounded, so that 0.1..1.0 ends at 1 and holds 0.3, not 0.30000000000000004.
            levels += [round(first + index * step, 6) for index in range(int((last - first) / step + 1e-6) + 1)]
        else:
            raise ValueError(f"--truncations has '{part}'; allowed are numbers, ranges such as 0.1..1.0, and none")
    for level in levels:
        check_truncation(level)
    return levels


def parse_seeds(text: str) -> list[int]:
    """Read `0-63,100,7` into seeds, in the order given.

    Raises:
        ValueError: If there is none, or a part is neither a number nor a range upwards.
    """
    if not text.strip():
        raise ValueError("--seeds has ''; name at least one seed, such as 0-63,100")
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
    """Read `all`, or class names, numbers and ranges of numbers, separated by commas, into class indices.

    Raises:
        ValueError: If a class is unknown; the nearest names are offered.
    """
    if text == "all":
        return list(range(num_classes))
    classes = []
    for part in (part.strip() for part in text.split(",")):
        if part in class_names:
            classes.append(list(class_names).index(part))
        elif (match := re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part)) and int(match[1]) <= (
            last := int(match[2] or match[1])
        ) < num_classes:
            classes.extend(range(int(match[1]), last + 1))
        else:
            raise ValueError(_unknown_class(part, class_names, num_classes))
    return classes


def _unknown_class(part: str, class_names: Sequence[str], num_classes: int) -> str:
    lower = {name.lower(): name for name in class_names}
    offered = [lower[near] for near in difflib.get_close_matches(part.lower(), lower, n=3, cutoff=0.5)]
    # A part of a name is no typing error: `drink` means food-and-drink.
    offered += [name for name in class_names if len(part) > 2 and part.lower() in name.lower() and name not in offered]
    hint = f"; did you mean {' or '.join(repr(name) for name in offered[:3])}?" if offered else ""
    names = f" and {', '.join(class_names[:12])}{', ...' if len(class_names) > 12 else ''}" if class_names else ""
    return f"--classes has '{part}'; allowed are all, 0 to {num_classes - 1}{names}{hint}"

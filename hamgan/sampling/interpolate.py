"""Walks through latents and classes: from seed to seed, from class to class, or both at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hamgan.sampling.draw import DrawsImages, draw_latents, joined
from hamgan.sampling.latents import seeded_latents

Curve = Literal["spherical", "linear"]
Along = Literal["z", "class", "both"]

PARALLEL = 1e-6
"""Below this sine two latents have no plane between them, and the straight line is taken."""


def linear(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Return the points (..., d) at t (...) on the straight line from a (t = 0) to b (t = 1), both (..., d); exact at both."""
    t = t[..., None].to(a.dtype)
    return (1 - t) * a + t * b


def spherical(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Return the points at t on the great arc from a to b, where latents are as long as the normal's are.

    The middle of a straight line between two normal latents is shorter by about sqrt(2) than any that G was trained on.

    Args:
        a: (..., d), reached exactly at t = 0.
        b: (..., d), reached exactly at t = 1.
        t: (...), in [0, 1].

    Returns:
        (..., d), in the dtype of a; computed in float64. Parallel or opposite latents get the straight line.

    Source: White 2016, "Sampling Generative Networks", section 2.1.
    """
    x, y, t = a.double(), b.double(), t[..., None].double()
    cosine = F.cosine_similarity(x, y, dim=-1)[..., None].clamp(-1, 1)
    angle = cosine.acos()
    sine = angle.sin()
    arc = ((1 - t) * angle).sin() / sine * x + (t * angle).sin() / sine * y
    return torch.where(sine > PARALLEL, arc, (1 - t) * x + t * y).to(a.dtype)


CURVES = {"spherical": spherical, "linear": linear}


def positions(num_keys: int, frames: int, loop: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each frame the key before it, the key after it and how far it is between, in [0, 1).

    Args:
        num_keys: Points that are passed; one alone is stayed at.
        frames: Frames from one key to the next.
        loop: Whether the walk goes on to where it began; the last frame is then the one before the first.

    Returns:
        int64, int64 and float64, each (F,), F = (num_keys - 1) * frames + 1, or num_keys * frames in a loop.

    Raises:
        ValueError: If there is no key or no frame.
    """
    if num_keys < 1:
        raise ValueError("a walk needs at least one seed and one class")
    if frames < 1:
        raise ValueError(f"frames is {frames}; at least 1 is needed from one key to the next")
    count = num_keys * frames if loop else (num_keys - 1) * frames + 1
    frame = torch.arange(count)
    before = frame // frames
    return before, (before + 1) % num_keys, (frame % frames).double() / frames


def walk_latents(keys: Tensor, frames: int, *, curve: Curve = "spherical", loop: bool = False) -> Tensor:
    """Walk through latents.

    Args:
        keys: Latents to pass, (K, z_dim); each is met exactly.
        frames: Frames from one to the next.
        curve: spherical or linear.
        loop: As in `positions`.

    Returns:
        (F, z_dim).
    """
    before, after, t = positions(len(keys), frames, loop)
    return CURVES[curve](keys[before], keys[after], t)


def walk_classes(classes: Sequence[int], num_classes: int, frames: int, *, loop: bool = False) -> Tensor:
    """Walk through classes, in straight lines between their embeddings.

    Args:
        classes: To pass, in [0, num_classes).
        num_classes: Of the generator.
        frames: Frames from one to the next.
        loop: As in `positions`.

    Returns:
        Weights of the classes, (F, num_classes), float32, rows adding up to 1; one class alone at each key.
    """
    before, after, t = positions(len(classes), frames, loop)
    corners = F.one_hot(torch.tensor(list(classes)), num_classes).float()
    return linear(corners[before], corners[after], t)


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One row of an interpolation."""

    label: str
    """What stays the same in it."""
    z: Tensor
    """(F, z_dim)."""
    y: Tensor
    """Weights of the classes, (F, num_classes)."""
    keys: dict[int, str]
    """What is passed, by frame."""

    def draw(self, G: DrawsImages) -> Tensor:
        """Draw every frame, uint8 (F, 3, resolution, resolution)."""
        return joined(G, draw_latents(G, self.z, self.y))


def frames_of(G: DrawsImages, rows: Sequence[Walk]) -> Iterator[Tensor]:
    """Draw walks side by side, frame after frame, holding only a few at a time.

    Yields:
        Every walk's image of the frame, uint8 (len(rows), 3, resolution, resolution).
    """
    z = torch.stack([row.z for row in rows], 1).flatten(0, 1)
    y = torch.stack([row.y for row in rows], 1).flatten(0, 1)
    held: list[Tensor] = []
    for chunk in draw_latents(G, z, y):
        held.extend(chunk)
        while len(held) >= len(rows):
            yield torch.stack(held[: len(rows)])
            del held[: len(rows)]


def walks(
    seeds: Sequence[int],
    classes: Sequence[int],
    *,
    z_dim: int,
    num_classes: int,
    class_names: Sequence[str] = (),
    along: Along = "z",
    frames: int = 8,
    curve: Curve = "spherical",
    loop: bool = False,
    truncation: float | None = None,
    z_scale: float = 1.0,
) -> list[Walk]:
    """Lay out an interpolation.

    Args:
        seeds: To pass or to hold.
        classes: To pass or to hold.
        z_dim: Of the generator.
        num_classes: Of the generator.
        class_names: Name of each class, for labels; may be empty.
        along: z: a row a class, each passing all seeds. class: a row a seed, each passing all classes. both: one row, key i
            being seed i with class i; the shorter list is repeated.
        frames: Frames from one key to the next.
        curve: Of the latents; classes go in straight lines.
        loop: Whether each row comes back to where it began.
        truncation: As in `seeded_latents`.
        z_scale: Likewise.

    Returns:
        The rows. Where two frames of any rows have equal z and y, their images are equal to the last bit.

    Raises:
        ValueError: If seeds or classes are empty, or a value is out of range.
    """
    if not seeds or not classes:
        raise ValueError("a walk needs at least one seed and one class")
    names = [class_names[y] if y < len(class_names) else f"class {y}" for y in classes]

    def keyed(labels: Sequence[str]) -> dict[int, str]:
        return {index * frames: label for index, label in enumerate(labels)}

    def latents(chosen: Sequence[int]) -> Tensor:
        return walk_latents(seeded_latents(chosen, z_dim, truncation, z_scale), frames, curve=curve, loop=loop)

    if along == "z":
        z, keys = latents(seeds), keyed([f"seed {seed}" for seed in seeds])
        held = [walk_classes([y], num_classes, 1).expand(len(z), -1) for y in classes]
        return [Walk(label=name, z=z, y=y, keys=keys) for name, y in zip(names, held, strict=True)]
    if along == "class":
        y, keys = walk_classes(classes, num_classes, frames, loop=loop), keyed(names)
        fixed = [seeded_latents([seed], z_dim, truncation, z_scale).expand(len(y), -1) for seed in seeds]
        return [Walk(label=f"seed {seed}", z=z, y=y, keys=keys) for seed, z in zip(seeds, fixed, strict=True)]
    count = max(len(seeds), len(classes))
    both = [(seeds[i % len(seeds)], i % len(classes)) for i in range(count)]
    return [
        Walk(
            label="",
            z=latents([seed for seed, _ in both]),
            y=walk_classes([classes[i] for _, i in both], num_classes, frames, loop=loop),
            keys=keyed([f"{names[i]}, seed {seed}" for seed, i in both]),
        )
    ]

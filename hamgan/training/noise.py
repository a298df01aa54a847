"""Every random number of training as a function of (seed, step, phase) and the sample's place in the global batch.

There is no generator state to save: a resumed run draws what the undisturbed one would have drawn, and a sample's latent,
class, augmentation and fresh ham bases do not depend on which of how many processes computes it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hamgan.training.augment import NUM_RANDOM

PHASES = ("flip", "d", "g")
Phase = Literal["flip", "d", "g"]


@dataclass(frozen=True, kw_only=True)
class NoiseSource:
    """Draws for the rows [start, stop) of a global batch."""

    seed: int
    z_dim: int
    num_classes: int
    batch_size: int
    """Of the global batch."""
    device: torch.device

    def _generator(self, step: int, phase: Phase, repeat: int) -> torch.Generator:
        entropy = [self.seed, step, PHASES.index(phase), repeat]
        return torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))

    def draw(self, step: int, phase: Phase, repeat: int, start: int, stop: int) -> "Noise":
        """Draw a phase's noise for some rows.

        Args:
            step: Number of the optimiser step.
            phase: d or g.
            repeat: Which of several D steps.
            start: First row of the global batch.
            stop: One past the last row.
        """
        generator = self._generator(step, phase, repeat)
        z = torch.randn(self.batch_size, self.z_dim, generator=generator)
        y = torch.randint(self.num_classes, (self.batch_size,), generator=generator)
        fake = torch.rand(self.batch_size, NUM_RANDOM, generator=generator)
        real = torch.rand(self.batch_size, NUM_RANDOM, generator=generator)
        rows = slice(start, stop)
        keys = torch.randint(-(2**63), 2**63 - 1, (3, self.batch_size), generator=generator)
        drawn = (z, y, fake, real, *keys)
        z, y, fake, real, *rest = (t[rows].to(self.device, non_blocking=True) for t in drawn)
        return Noise(
            z=z, y=y, augment_fake=fake, augment_real=real, keys_g=rest[0], keys_d_fake=rest[1], keys_d_real=rest[2]
        )

    def flips(self, step: int, repeat: int, start: int, stop: int) -> Tensor:
        """Draw uniform numbers, (stop - start,), that decide which real images are mirrored."""
        numbers = torch.rand(self.batch_size, generator=self._generator(step, "flip", repeat))
        return numbers[start:stop].to(self.device, non_blocking=True)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """One micro-batch's random numbers."""

    z: Tensor
    """(B, z_dim), N(0, 1)."""
    y: Tensor
    """Classes of the generated images, (B,), uniform."""
    augment_fake: Tensor
    """(B, NUM_RANDOM), uniform."""
    augment_real: Tensor
    """(B, NUM_RANDOM), uniform."""
    keys_g: Tensor
    """int64 (B,), any value: G's fresh ham bases follow from it."""
    keys_d_fake: Tensor
    """Likewise D's, for the generated images."""
    keys_d_real: Tensor
    """Likewise D's, for the real images."""

"""Exponential moving average of a network's weights."""

from dataclasses import dataclass

import torch
from torch import nn

from hamgan.nn import tensor_kernels


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """The average of the generator that is sampled and saved."""

    decay: float = 0.9999
    """Weight of the old average at a step, in [0, 1)."""
    start_step: int = 0
    """Up to this step the average is the network itself."""
    ramp_up: bool = True
    """Whether the decay at step t after the start is at most (1 + t) / (10 + t)."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"ema.decay is {self.decay}; it must be in [0, 1)")
        if self.start_step < 0:
            raise ValueError(f"ema.start_step is {self.start_step}; it must be at least 0")


def ema_decay(step: int, config: EmaConfig) -> float:
    """Return the weight of the old average after `step` optimiser steps."""
    since = step - config.start_step
    if since <= 0:
        return 0.0
    return min(config.decay, (1 + since) / (10 + since)) if config.ramp_up else config.decay


class MovingAverage:
    """What moves a network after another, step by step.

    Weights and running statistics are averaged; the vectors u of spectral norm and the bases of a ham are copied, as they
    belong to the latest weights and have no meaningful mean.

    Args:
        average: The network that is moved, in place.
        network: The other one; both keep their tensors.
        config: How fast.
    """

    def __init__(self, average: nn.Module, network: nn.Module, config: EmaConfig) -> None:
        self.config = config
        targets, sources = average.state_dict(), network.state_dict()
        copied = [name for name in targets if name.endswith(("spectral_norm.u", "_ham.bases"))]
        averaged = [name for name in targets if name not in copied]
        self._copied = [targets[name] for name in copied], [sources[name] for name in copied]
        self._averaged = [targets[name] for name in averaged], [sources[name] for name in averaged]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average after `step` optimiser steps."""
        weight = 1.0 - ema_decay(step, self.config)
        for (targets, sources), share in ((self._averaged, weight), (self._copied, 1.0)):
            if not targets:
                continue
            if tensor_kernels.takes_pairs(targets, sources):
                tensor_kernels.lerp(targets, sources, share)
            elif share == 1:
                torch._foreach_copy_(targets, sources)
            else:
                torch._foreach_lerp_(targets, sources, share)

"""Exponential moving average of a network's weights."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


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


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, step: int, config: EmaConfig) -> None:
    """Move `average` towards `network` after `step` optimiser steps.

    Weights and running statistics are averaged; the vectors u of spectral norm and the bases of a ham are copied, as they
    belong to the latest weights and have no meaningful mean.
    """
    decay = ema_decay(step, config)
    averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
    sources = network.state_dict()
    for name, target in average.state_dict().items():
        if name.endswith(("spectral_norm.u", "_ham.bases")):
            target.copy_(sources[name])
        else:
            averaged[0].append(target)
            averaged[1].append(sources[name])
    torch._foreach_lerp_(averaged[0], averaged[1], 1.0 - decay)

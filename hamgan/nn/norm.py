"""Batch normalisation, plain and class-conditional, local or across replicas."""

from collections.abc import Callable
from typing import Literal, cast

import torch
import torch.distributed as torch_dist
import torch.nn.functional as F
from torch import Tensor, nn

from hamgan.nn.class_table import ClassTable
from hamgan.nn.recompute import is_repeating
from hamgan.nn.replicas import standardize
from hamgan.nn.spectral_norm import SNLinear, SpectralNormConfig


class RunningStatistics(nn.Module):
    """Running statistics, and what normalises by them; the part that every batch norm here shares.

    Args:
        num_channels: Channels C of the maps.
        eps: Added to the variance; dimensionless.
        momentum: Weight of the new batch in the running averages, in (0, 1].
        cross_replica: Whether the statistics are those of the batch over all processes.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_channels: int, *, eps: float, momentum: float, cross_replica: bool) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.cross_replica = cross_replica
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))

    def normalize(self, x: Tensor, gain: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Standardise (B, C, H, W) by the batch's statistics in training and by the running ones in evaluation.

        Args:
            x: The map.
            gain: Of each channel, (C,), to multiply the result by; in the same pass where it can be.
            bias: Of each channel, (C,), to add then; given with `gain`.
        """
        if self.spans_replicas():
            y = self._across_replicas(x)
            if gain is None or bias is None:
                return y
            return torch.addcmul(bias.to(y.dtype)[:, None, None], y, gain.to(y.dtype)[:, None, None])
        mean, var = self.running_mean, self.running_var
        if self.training and is_repeating():
            mean, var = mean.clone(), var.clone()
        return F.batch_norm(x, mean, var, gain, bias, training=self.training, momentum=self.momentum, eps=self.eps)

    def spans_replicas(self) -> bool:
        """Say whether the next forward takes its statistics over several processes."""
        return self.training and self.cross_replica and torch_dist.is_initialized() and torch_dist.get_world_size() > 1

    def _across_replicas(self, x: Tensor) -> Tensor:
        y, mean, var, count = standardize(x, self.eps)
        if is_repeating():
            return y
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * (count / max(count - 1, 1)), self.momentum)
        return y


class BatchStatistics(RunningStatistics):
    """Standardises maps as a module of its own, which can be watched."""

    def forward(self, x: Tensor, gain: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Normalise (B, C, H, W); arguments as in `normalize`."""
        return self.normalize(x, gain, bias)


class BatchNorm(nn.Module):
    """Batch norm with one gain and one bias a channel."""

    def __init__(self, num_channels: int, *, eps: float, momentum: float, cross_replica: bool) -> None:
        super().__init__()
        self.statistics = BatchStatistics(num_channels, eps=eps, momentum=momentum, cross_replica=cross_replica)
        self.gain = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        return cast(Tensor, self.statistics(x, self.gain, self.bias))


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain and bias depend on the condition.

    Two forms, told apart by `condition`: `shared` predicts gain - 1 and bias from a vector by spectrally normalised linear
    maps without bias (Brock et al. 2019, appendix B); `per_class` looks both up in tables (Dumoulin et al. 2017).

    Args:
        num_channels: Channels C of the maps.
        condition: `shared` or `per_class`.
        condition_dim: Length of the condition vector, or the number of classes.
        spectral_norm: Of the linear maps of `shared`.
        eps: Added to the variance; dimensionless.
        momentum: Weight of the new batch in the running averages.
        cross_replica: Whether the statistics are those of the batch over all processes.
    """

    gain: nn.Module
    bias: nn.Module

    def __init__(
        self,
        num_channels: int,
        *,
        condition: Literal["shared", "per_class"],
        condition_dim: int,
        spectral_norm: SpectralNormConfig,
        eps: float,
        momentum: float,
        cross_replica: bool,
    ) -> None:
        super().__init__()
        self.statistics = BatchStatistics(num_channels, eps=eps, momentum=momentum, cross_replica=cross_replica)
        self.gain_offset = 1.0 if condition == "shared" else 0.0
        if condition == "shared":
            self.gain = SNLinear(condition_dim, num_channels, bias=False, spectral_norm=spectral_norm)
            self.bias = SNLinear(condition_dim, num_channels, bias=False, spectral_norm=spectral_norm)
        else:
            self.gain = ClassTable(condition_dim, num_channels)
            self.bias = ClassTable(condition_dim, num_channels)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Normalise (B, C, H, W) under the condition: vectors (B, condition_dim), or classes as `ClassTable` takes them."""
        gain = (self.gain_offset + self.gain(c)).to(x.dtype)
        bias = self.bias(c).to(x.dtype)
        return torch.addcmul(bias[:, :, None, None], self.statistics(x), gain[:, :, None, None])


ConditionalNormFactory = Callable[[int], ConditionalBatchNorm]
"""Builds the conditional norm of a map from its number of channels."""

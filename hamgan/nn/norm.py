"""Batch normalisation, plain and class-conditional, local or across replicas."""

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.distributed as torch_dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hamgan.nn import kernels
from hamgan.nn.class_table import ClassTable
from hamgan.nn.exchange import gather
from hamgan.nn.recompute import is_repeating
from hamgan.nn.replicas import join_moments, standardize
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

    def normalize(
        self, x: Tensor, gain: Tensor | None = None, bias: Tensor | None = None, relu: bool = False
    ) -> Tensor:
        """Standardise (B, C, H, W) by the batch's statistics in training and by the running ones in evaluation.

        Args:
            x: The map.
            gain: To multiply the result by, of each channel, (C,), or of each sample's channels, (B, C).
            bias: To add then, likewise; given with `gain`.
            relu: Whether to take the positive part of all that.
        """
        if kernels.takes_norm(x, (self.running_mean, self.running_var), gain, bias):
            return self._through_kernels(x, gain, bias, relu)
        if self.spans_replicas():
            y = self._across_replicas(x)
        else:
            mean, var = self.running_mean, self.running_var
            if self.training and is_repeating():
                mean, var = mean.clone(), var.clone()
            plain = gain is None or gain.dim() == 1
            y = F.batch_norm(
                *(x, mean, var, *((gain, bias) if plain else (None, None))),
                training=self.training,
                momentum=self.momentum,
                eps=self.eps,
            )
            if plain:
                return F.relu_(y) if relu else y
        if gain is not None and bias is not None:
            gain, bias = gain.to(y.dtype), bias.to(y.dtype)
            y = torch.addcmul(bias[..., None, None], y, gain[..., None, None])
        return F.relu_(y) if relu else y

    def _through_kernels(self, x: Tensor, gain: Tensor | None, bias: Tensor | None, relu: bool) -> Tensor:
        gain = None if gain is None else gain.float().contiguous()
        bias = None if bias is None else bias.float().contiguous()
        num_values, replicas = 0, self.spans_replicas()
        with torch.no_grad():
            if not self.training:
                moments = torch.stack([self.running_mean, self.running_var])
            else:
                running = None if replicas or is_repeating() else (self.running_mean, self.running_var)
                moments = kernels.norm_moments(x, running, self.momentum)
                num_values = x.numel() // x.shape[1]
                if replicas:
                    num_values *= torch_dist.get_world_size()
                    moments = join_moments(moments)
                    self._advance(moments[0], moments[1], num_values)
        function = _NormalizeAcross if replicas else _Normalize
        return cast(Tensor, function.apply(x, gain, bias, moments, self.eps, num_values, relu))

    def spans_replicas(self) -> bool:
        """Say whether the next forward takes its statistics over several processes."""
        return self.training and self.cross_replica and torch_dist.is_initialized() and torch_dist.get_world_size() > 1

    def _across_replicas(self, x: Tensor) -> Tensor:
        y, mean, var, count = standardize(x, self.eps)
        self._advance(mean, var, count)
        return y

    def _advance(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the running statistics towards those of a batch of `count` values a channel."""
        if not is_repeating():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / max(count - 1, 1)), self.momentum)


class _Normalize(torch.autograd.Function):
    """kernels.norm_apply and its gradient, which goes through the moments too where they are those of x.

    `num_values` is how many values of a channel the moments are of, in all processes; 0: they are constants.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor | None,
        bias: Tensor | None,
        moments: Tensor,
        eps: float,
        num_values: int,
        relu: bool,
    ) -> Tensor:
        y, scales = kernels.norm_apply(x, moments, eps, gain, bias, relu=relu)
        ctx.save_for_backward(x, gain, bias, moments, scales)
        ctx.settings = eps, num_values, relu
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # the engine's way to say create_graph: a penalty differentiates this again
            return *_plain_gradients(ctx, gradients[0]), None, None, None, None
        return _gradients(ctx, gradients[0], across=False)


class _NormalizeAcross(_Normalize):
    """The same where the moments are those of all processes."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, gradients[0], across=True)


def _gradients(ctx: Any, grad: Tensor, *, across: bool) -> tuple[Tensor | None, ...]:
    x, gain, bias, moments, scales = ctx.saved_tensors
    eps, num_values, relu = ctx.settings
    grad = grad.to(x.dtype).contiguous(memory_format=torch.channels_last)
    dgain, dbias, totals = kernels.norm_gradient_sums(grad, x, moments, eps, gain, scales, relu=relu)
    dx = None
    if ctx.needs_input_grad[0]:
        if across:
            totals = torch.stack(gather(totals)).sum(0)
        elif not num_values:
            totals, num_values = totals.zero_(), 1
        dx = kernels.norm_gradient(grad, x, moments, eps, scales, totals, num_values, relu=relu)
    return dx, None if gain is None else dgain, None if bias is None else dbias, None, None, None, None


def _plain_gradients(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """Return the gradients of x, gain and bias as functions that can be differentiated again."""
    x, gain, bias, moments, _ = ctx.saved_tensors
    eps, num_values, relu = ctx.settings
    mean, var = (None, None) if num_values else moments
    y = F.batch_norm(x, mean, var, training=num_values > 0, eps=eps)
    if gain is not None and bias is not None:
        y = torch.addcmul(bias.to(y.dtype)[..., None, None], y, gain.to(y.dtype)[..., None, None])
    inputs = x, gain, bias
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    found = iter(torch.autograd.grad(F.relu(y) if relu else y, wanted, grad, create_graph=True))
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in inputs]


class BatchStatistics(RunningStatistics):
    """Standardises maps as a module of its own, which can be watched."""

    def forward(self, x: Tensor, gain: Tensor | None = None, bias: Tensor | None = None, relu: bool = False) -> Tensor:
        """Normalise (B, C, H, W); arguments as in `normalize`."""
        return self.normalize(x, gain, bias, relu)


class BatchNorm(nn.Module):
    """Batch norm with one gain and one bias a channel."""

    def __init__(self, num_channels: int, *, eps: float, momentum: float, cross_replica: bool) -> None:
        super().__init__()
        self.statistics = BatchStatistics(num_channels, eps=eps, momentum=momentum, cross_replica=cross_replica)
        self.gain = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """Normalise (B, C, H, W), and take the positive part where so asked."""
        return cast(Tensor, self.statistics(x, self.gain, self.bias, relu))


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

    def forward(self, x: Tensor, c: Tensor, relu: bool = False) -> Tensor:
        """Normalise (B, C, H, W) under the condition: vectors (B, condition_dim), or classes as `ClassTable` takes them.

        With `relu` the positive part is taken then.
        """
        gain, bias = self.gain(c), self.bias(c)
        wide = torch.promote_types(gain.dtype, torch.float32)
        return cast(Tensor, self.statistics(x, self.gain_offset + gain.to(wide), bias.to(wide), relu))


ConditionalNormFactory = Callable[[int], ConditionalBatchNorm]
"""Builds the conditional norm of a map from its number of channels."""

"""Spectral normalisation of convolutions, linear maps and embeddings by one power iteration a forward pass.

Source: Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks", algorithm 1. Two public dialects
are kept apart by `SpectralNormConfig`: BigGAN-PyTorch's (u on the output side, W / sigma) and TF-GAN's, which the official
HamGAN uses (u on the input side, W / max(1, sigma)).
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamgan.nn import kernels
from hamgan.nn.convolution import conv2d
from hamgan.nn.precision import compute_dtype, float32_island
from hamgan.nn.recompute import is_repeating
from hamgan.nn.resample import conv2d_downsample, upsample_conv2d


@dataclass(frozen=True, kw_only=True)
class SpectralNormConfig:
    """How weights are divided by their largest singular value."""

    mode: Literal["equality", "inequality", "none"] = "equality"
    """equality: W / sigma; inequality: W / max(1, sigma); none: W as it is."""
    side: Literal["output", "input"] = "output"
    """Where the stored vector u lives: output (length c_out, BigGAN-PyTorch) or input (length c_in * kh * kw, TF-GAN)."""
    eps: float = 1e-6
    """Smallest norm by which a vector is divided; dimensionless."""

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise ValueError(f"spectral_norm.eps is {self.eps}; it must be > 0")


class SpectralNorm(nn.Module):
    """Owns the vector u of one weight and gives the weight its normalised form.

    Args:
        weight: The weight to be normalised; only its shape is read here.
        config: Mode, side and eps.
    """

    u: Tensor
    held: bool
    """Whether u stays as it is in training too; sigma is then that of u and one product with the weight."""

    def __init__(self, weight: Tensor, config: SpectralNormConfig) -> None:
        super().__init__()
        self.config = config
        self.held = False
        self._last: tuple[Tensor, Tensor, Tensor] | Tensor | None = None
        num_out, num_in = weight.shape[0], weight[0].numel()
        length = num_out if config.side == "output" else num_in
        self.register_buffer("u", F.normalize(torch.randn(length), dim=0))

    def forward(self, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return the normalised weight, same shape; in training mode store the advanced u.

        In evaluation mode too one power iteration is taken, from the stored u and without storing it, as both public
        implementations do.

        Args:
            weight: The raw weight.
            dtype: Of the result; None: the weight's.
        """
        dtype = dtype or weight.dtype
        if self.config.mode == "none":
            return weight.to(dtype)
        smallest = 1.0 if self.config.mode == "inequality" else 0.0
        if kernels.takes_weight(weight, self.u, dtype, on_rows=self.config.side == "output"):
            return self._through_kernels(weight, smallest, dtype)
        with float32_island(weight.device):
            u, v, sigma = self._iterate(weight.detach())
            if torch.compiler.is_compiling():
                return divide_by_sigma(weight, u, v, smallest).to(dtype)
            return cast(Tensor, _DivideBySigma.apply(weight, u, v, sigma, smallest, dtype))

    def _through_kernels(self, weight: Tensor, smallest: float, dtype: torch.dtype) -> Tensor:
        """As `_iterate` and the division after it, in one call."""
        if self.training and is_repeating():
            assert isinstance(self._last, Tensor)
            found, advance = self._last, 3
        else:
            found = weight.new_empty(weight.shape[0] + weight.numel() // weight.shape[0] + 2)
            advance = 1 if not self.training else 0 if self.held else 2
        if self.training:
            self._last = found
        on_rows = self.config.side == "output"
        return cast(
            Tensor,
            _DivideInKernels.apply(weight, self.u, found, on_rows, advance, self.config.eps, smallest, dtype),
        )

    @torch.no_grad()
    def _iterate(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take one power iteration.

        Returns:
            The vectors over c_out and over c_in * kh * kw, the latter in memory order, and u' W v, which the iteration has
            anyway: a vector of unit length times what it was scaled from.
        """
        if self.training and is_repeating():
            assert isinstance(self._last, tuple)
            return self._last
        matrix = matrix_of(weight)
        output_side = self.config.side == "output"
        u = self.u if output_side else to_memory_order(self.u, weight)
        there, back = (matrix.t(), matrix) if output_side else (matrix, matrix.t())
        product = torch.mv(there, u)
        v = F.normalize(product, dim=0, eps=self.config.eps)
        sigma = torch.dot(product, v)
        if not (self.training and self.held):
            product = torch.mv(back, v)
            u = F.normalize(product, dim=0, eps=self.config.eps)
            sigma = torch.dot(product, u)
            if self.training:
                self.u.copy_(u if output_side else from_memory_order(u, weight))
        found = (u, v, sigma) if output_side else (v, u, sigma)
        if self.training and not torch.compiler.is_compiling():
            self._last = found
        return found

    @torch.no_grad()
    def sigma(self, weight: Tensor) -> Tensor:
        """Return the present estimate of the largest singular value, a scalar, for monitoring; changes nothing."""
        matrix = weight.detach().flatten(1)
        return torch.mv(matrix.t() if self.config.side == "output" else matrix, self.u).norm()


def matrix_of(weight: Tensor) -> Tensor:
    """View a weight as (c_out, c_in * kh * kw), columns in the order in which they lie in memory."""
    return weight.permute(0, 2, 3, 1).flatten(1) if _channels_last(weight) else weight.flatten(1)


def to_memory_order(vector: Tensor, weight: Tensor) -> Tensor:
    """Order a vector over (c_in, kh, kw) as the columns of `matrix_of(weight)`."""
    if not _channels_last(weight):
        return vector
    return vector.view(weight.shape[1:]).permute(1, 2, 0).flatten()


def from_memory_order(vector: Tensor, weight: Tensor) -> Tensor:
    """Undo `to_memory_order`."""
    if not _channels_last(weight):
        return vector
    return vector.view(*weight.shape[2:], weight.shape[1]).permute(2, 0, 1).flatten()


def _channels_last(weight: Tensor) -> bool:
    return weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)


def divide_by_sigma(weight: Tensor, u: Tensor, v: Tensor, smallest: float) -> Tensor:
    """Return weight / max(u' W v, smallest); u (c_out,) and v, as `matrix_of` orders it, are constants."""
    sigma = torch.dot(u, torch.mv(matrix_of(weight), v))
    return weight / (sigma.clamp_min(smallest) if smallest else sigma)


class _DivideBySigma(torch.autograd.Function):
    """`divide_by_sigma` and its gradient with fewer passes over the weight than differentiating each operation takes.

    With s = max(sigma, smallest): d/dW (W / s) applied to G is G / s - [sigma >= smallest] <G, W> / s^2 u v'.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor, smallest: float, dtype: torch.dtype
    ) -> Tensor:
        inverse = (sigma.clamp_min(smallest) if smallest else sigma).reciprocal()
        ctx.save_for_backward(weight, u, v, sigma, inverse)
        ctx.smallest = smallest
        return (weight * inverse).to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, u, v, sigma, inverse = ctx.saved_tensors
        grad = gradients[0]
        if torch.is_grad_enabled():  # the engine's way to say create_graph: a penalty differentiates this again
            out = divide_by_sigma(weight, u, v, ctx.smallest)
            (found,) = torch.autograd.grad(out, weight, grad.to(weight.dtype), create_graph=True)
            return found, None, None, None, None, None
        grad = grad.to(
            weight.dtype, memory_format=torch.channels_last if _channels_last(weight) else torch.contiguous_format
        )
        matrix, raw = matrix_of(grad), matrix_of(weight)
        share = torch.dot(matrix.flatten(), raw.flatten()) * inverse.square()
        if ctx.smallest:
            share = share * (sigma >= ctx.smallest)
        found = (matrix * inverse).addr_(u * -share, v)
        if _channels_last(weight):
            found = found.unflatten(1, (*weight.shape[2:], weight.shape[1])).permute(0, 3, 1, 2)
        return found.view(weight.shape), None, None, None, None, None


class _DivideInKernels(torch.autograd.Function):
    """A power iteration and `_DivideBySigma`, both compiled; `found` is what kernels.spectral_norm leaves."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        u: Tensor,
        found: Tensor,
        on_rows: bool,
        advance: int,
        eps: float,
        smallest: float,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(weight, found)
        ctx.smallest = smallest
        return kernels.spectral_norm(
            weight, u, found, on_rows=on_rows, advance=advance, eps=eps, smallest=smallest, dtype=dtype
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, found = ctx.saved_tensors
        (grad,) = gradients
        if torch.is_grad_enabled():  # as in _DivideBySigma
            u, v = found[: weight.shape[0]], found[weight.shape[0] : -2]
            out = divide_by_sigma(weight, u, v, ctx.smallest)
            (result,) = torch.autograd.grad(out, weight, grad.to(weight.dtype), create_graph=True)
        else:
            result = kernels.spectral_norm_gradient(grad, weight, found, ctx.smallest)
        return result, None, None, None, None, None, None, None


class SNConv2d(nn.Conv2d):
    """A convolution of stride 1 and same padding whose weight is spectrally normalised.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: 1 or 3, pixels.
        bias: Whether a bias is added.
        spectral_norm: Mode, side and eps.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        bias: bool = True,
        spectral_norm: SpectralNormConfig,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
        self.spectral_norm = SpectralNorm(self.weight, spectral_norm)

    def normalized_weight(self) -> Tensor:
        """Return the weight that the convolution uses, (c_out, c_in, k, k), in autocast's dtype where autocast is on."""
        return self.spectral_norm(self.weight, compute_dtype(self.weight))

    def forward(self, x: Tensor, *, bias: bool = True, relu: bool = False) -> Tensor:
        """Convolve (B, c_in, H, W) to (B, c_out, H, W), with the bias and taking the positive part where so asked."""
        shift = self.bias if bias else None
        return conv2d(x, self.normalized_weight(), shift, padding=self.kernel_size[0] // 2, relu=relu)

    def scaled(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return `scale * self(x)`, (B, c_out, H, W), of a scalar: it scales the weight, which spares a pass over the map."""
        weight = (self.spectral_norm(self.weight) * scale).to(compute_dtype(self.weight))
        return conv2d(x, weight, None if self.bias is None else self.bias * scale, padding=self.kernel_size[0] // 2)

    def upsampled(self, x: Tensor) -> Tensor:
        """Return `self(nearest_upsample(x))`, (B, c_out, 2H, 2W), by the cheapest exact way."""
        return upsample_conv2d(x, self.normalized_weight(), self.bias)

    def downsampled(self, x: Tensor, *, before: Tensor | None = None, relu: bool = False) -> Tensor:
        """Return `average_pool(self(x))`, (B, c_out, H/2, W/2), by the cheapest exact way.

        Args:
            x: Features, (B, c_in, H, W).
            before: (c_in,), added to x first; or None.
            relu: Whether the positive part is taken then.
        """
        return conv2d_downsample(x, self.normalized_weight(), self.bias, before=before, relu=relu)


class SNLinear(nn.Linear):
    """A linear map whose weight is spectrally normalised."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, spectral_norm: SpectralNormConfig
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.spectral_norm = SpectralNorm(self.weight, spectral_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_features) to (B, out_features)."""
        return F.linear(x, self.spectral_norm(self.weight, compute_dtype(self.weight)), self.bias)


class SNEmbedding(nn.Embedding):
    """A table of class vectors that is spectrally normalised as one matrix (num_classes, dim)."""

    def __init__(self, num_classes: int, dim: int, *, spectral_norm: SpectralNormConfig) -> None:
        super().__init__(num_classes, dim)
        self.spectral_norm = SpectralNorm(self.weight, spectral_norm)

    def forward(self, y: Tensor) -> Tensor:
        """Look up int64 classes (B,) to (B, dim)."""
        return F.embedding(y, self.spectral_norm(self.weight))


def spectral_sigmas(network: nn.Module) -> dict[str, Tensor]:
    """Return the estimated largest singular value of every normalised weight, by module name."""
    return {
        name: module.spectral_norm.sigma(module.weight)
        for name, module in network.named_modules()
        if isinstance(module, SNConv2d | SNLinear | SNEmbedding)
    }

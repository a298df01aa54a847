"""Spectral normalisation of convolutions, linear maps and embeddings by one power iteration a forward pass.

Source: Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks", algorithm 1. Two public dialects
are kept apart by `SpectralNormConfig`: BigGAN-PyTorch's (u on the output side, W / sigma) and TF-GAN's, which the official
HamGAN uses (u on the input side, W / max(1, sigma)).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamgan.nn.precision import float32_island
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

    def __init__(self, weight: Tensor, config: SpectralNormConfig) -> None:
        super().__init__()
        self.config = config
        num_out, num_in = weight.shape[0], weight[0].numel()
        length = num_out if config.side == "output" else num_in
        self.register_buffer("u", F.normalize(torch.randn(length), dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the normalised weight, float32, same shape; in training mode store the advanced u.

        In evaluation mode too one power iteration is taken, from the stored u and without storing it, as both public
        implementations do.
        """
        if self.config.mode == "none":
            return weight
        with float32_island(weight.device):
            sigma = self._sigma(weight)
            if self.config.mode == "inequality":
                sigma = sigma.clamp_min(1.0)
            return weight / sigma

    def _sigma(self, weight: Tensor) -> Tensor:
        """Estimate the largest singular value of (c_out, c_in * kh * kw); a scalar that carries the weight's gradient."""
        matrix = weight.flatten(1)
        if self.config.side == "input":
            matrix = matrix.t()
        with torch.no_grad():
            v = F.normalize(torch.mv(matrix.t(), self.u), dim=0, eps=self.config.eps)
            u = F.normalize(torch.mv(matrix, v), dim=0, eps=self.config.eps)
            if self.training:
                self.u.copy_(u)
        return torch.dot(u, torch.mv(matrix, v))

    @torch.no_grad()
    def sigma(self, weight: Tensor) -> Tensor:
        """Return the present estimate of the largest singular value, a scalar, for monitoring; changes nothing."""
        matrix = weight.detach().flatten(1)
        if self.config.side == "input":
            matrix = matrix.t()
        return torch.mv(matrix.t(), self.u).norm()


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
        """Return the weight that the convolution uses, (c_out, c_in, k, k)."""
        return self.spectral_norm(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, c_in, H, W) to (B, c_out, H, W)."""
        return F.conv2d(x, self.normalized_weight(), self.bias, padding=self.padding)

    def upsampled(self, x: Tensor) -> Tensor:
        """Return `self(nearest_upsample(x))`, (B, c_out, 2H, 2W), by the cheapest exact way."""
        return upsample_conv2d(x, self.normalized_weight(), self.bias)

    def downsampled(self, x: Tensor) -> Tensor:
        """Return `average_pool(self(x))`, (B, c_out, H/2, W/2), by the cheapest exact way."""
        return conv2d_downsample(x, self.normalized_weight(), self.bias)


class SNLinear(nn.Linear):
    """A linear map whose weight is spectrally normalised."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, spectral_norm: SpectralNormConfig
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.spectral_norm = SpectralNorm(self.weight, spectral_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_features) to (B, out_features)."""
        return F.linear(x, self.spectral_norm(self.weight), self.bias)


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

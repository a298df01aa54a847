"""Initial weights of a network."""

from typing import Literal

import torch
from torch import nn

from hamgan.nn.norm import ConditionalBatchNorm

WeightInit = Literal["orthogonal", "xavier_uniform", "normal"]


@torch.no_grad()
def initialize(network: nn.Module, weights: WeightInit) -> None:
    """Initialise every convolution, linear map and embedding in place; biases 0, per-class tables gain 1 and bias 0.

    Args:
        network: The network.
        weights: orthogonal (BigGAN; Saxe et al. 2014), xavier_uniform (SAGAN and HamGAN; Glorot & Bengio 2010) or normal
            with deviation 0.02 (Radford et al. 2016; BigGAN-PyTorch on CIFAR-10).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            if weights == "orthogonal":
                nn.init.orthogonal_(module.weight)
            elif weights == "xavier_uniform":
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.normal_(module.weight, std=0.02)
            bias = getattr(module, "bias", None)
            if bias is not None:
                nn.init.zeros_(bias)
    for module in network.modules():
        if isinstance(module, ConditionalBatchNorm) and isinstance(module.gain, nn.Embedding):
            assert isinstance(module.bias, nn.Embedding)
            nn.init.ones_(module.gain.weight)
            nn.init.zeros_(module.bias.weight)

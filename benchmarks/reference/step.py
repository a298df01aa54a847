"""One D step and one G step as BigGAN-PyTorch takes them: toggled gradients, plain Adam, the EMA tensor by tensor."""

import contextlib
import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from reference.networks import Discriminator, Generator
from torch import Tensor, nn

from hamgan.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What a step is given: real images and the generated ones' latents and classes, for both phases."""

    real: Tensor
    y: Tensor
    d_z: Tensor
    d_y: Tensor
    g_z: Tensor
    g_y: Tensor


class ReferenceStep:
    """Networks and optimisers of one training run; a call is a whole training step.

    Args:
        config: Architecture, Adam, augmentation and EMA decay.
        bf16: Whether the networks run under bfloat16 autocast, which the public code does not offer.
    """

    def __init__(self, config: TrainConfig, *, bf16: bool = False) -> None:
        self.G, self.D = Generator(config.generator), Discriminator(config.discriminator)
        for network in (self.G, self.D):
            for module in network.modules():
                if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                    nn.init.xavier_uniform_(module.weight)
        self.G_ema = copy.deepcopy(self.G)
        self.g_adam, self.d_adam = (
            torch.optim.Adam(network.parameters(), lr=one.lr, betas=(one.beta1, one.beta2), eps=one.eps)
            for network, one in ((self.G, config.g_optimizer), (self.D, config.d_optimizer))
        )
        self.decay, self.kinds, self.fraction = config.ema.decay, config.augment.kinds, config.augment.translation
        self.bf16 = bf16

    def __call__(self, draw: Draw) -> None:
        """Take one D step, one G step and one step of the average."""
        context = torch.autocast("cpu", dtype=torch.bfloat16) if self.bf16 else contextlib.nullcontext()
        self.d_adam.zero_grad()
        self.g_adam.zero_grad()
        toggle_grad(self.D, True)
        toggle_grad(self.G, False)
        with context:
            with torch.no_grad():
                fake = self.G(draw.d_z, draw.d_y).float()
            images = self.augment(torch.cat([fake, draw.real]))
            out = self.D(images, torch.cat([draw.d_y, draw.y])).float()
        fake_logits, real_logits = torch.split(out, [len(fake), len(draw.real)])
        loss = torch.mean(F.relu(1.0 - real_logits)) + torch.mean(F.relu(1.0 + fake_logits))
        loss.backward()
        self.d_adam.step()

        self.g_adam.zero_grad()
        toggle_grad(self.D, False)
        toggle_grad(self.G, True)
        with context:
            logits = self.D(self.augment(self.G(draw.g_z, draw.g_y).float()), draw.g_y).float()
        (-torch.mean(logits)).backward()
        self.g_adam.step()
        self.update_ema()
        float(loss.detach())  # printed at each step

    def update_ema(self) -> None:
        """Move the average tensor by tensor."""
        source = self.G.state_dict()
        with torch.no_grad():
            for key, target in self.G_ema.state_dict().items():
                target.copy_(target * self.decay + source[key] * (1 - self.decay))

    def augment(self, images: Tensor) -> Tensor:
        """DiffAugment as published: colour by means, translation by gathered pixels."""
        batch, _, height, width = images.shape
        if "color" in self.kinds:
            images = images + (torch.rand(batch, 1, 1, 1) - 0.5)
            mean = images.mean(dim=1, keepdim=True)
            images = (images - mean) * (torch.rand(batch, 1, 1, 1) * 2) + mean
            mean = images.mean(dim=[1, 2, 3], keepdim=True)
            images = (images - mean) * (torch.rand(batch, 1, 1, 1) + 0.5) + mean
        if "translation" in self.kinds:
            reach_y, reach_x = int(height * self.fraction + 0.5), int(width * self.fraction + 0.5)
            down = torch.randint(-reach_y, reach_y + 1, (batch, 1, 1))
            right = torch.randint(-reach_x, reach_x + 1, (batch, 1, 1))
            sample, row, column = torch.meshgrid(
                torch.arange(batch), torch.arange(height), torch.arange(width), indexing="ij"
            )
            row = torch.clamp(row + down + 1, 0, height + 1)
            column = torch.clamp(column + right + 1, 0, width + 1)
            padded = F.pad(images, [1, 1, 1, 1])
            images = padded.permute(0, 2, 3, 1)[sample, row, column].permute(0, 3, 1, 2)
        if "cutout" in self.kinds:
            raise ValueError("the reference step knows color and translation only")
        return images


def toggle_grad(network: nn.Module, on: bool) -> None:
    """Switch the gradients of a network's weights."""
    for parameter in network.parameters():
        parameter.requires_grad = on

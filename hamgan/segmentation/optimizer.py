"""The published recipes: which parameters decay, and how the learning rate moves."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from hamgan.segmentation.model import Segmentor

Decay = Literal["all", "not_backbone_norms", "convolutions"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """An optimiser with its schedule. The defaults are Light-Ham's."""

    kind: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum."""
    lr: float = 6e-5
    """Learning rate, before warm-up and decay."""
    bias_lr: float = 1.0
    """Factor of the learning rate of biases; 2 in the paper's PASCAL VOC code."""
    backbone_lr: float = 1.0
    """Factor of the learning rate of the backbone: below 1 where it was trained before and the head was not."""
    beta1: float = 0.9
    """AdamW's decay of the first moment; SGD's momentum."""
    beta2: float = 0.999
    """AdamW's decay of the second moment."""
    weight_decay: float = 0.01
    """Of the parameters that decay."""
    decay: Decay = "not_backbone_norms"
    """Which decay: all (HamNet's on ADE20K), all but the backbone's norms (Light-Ham's), or convolutions' weights alone
    (the paper's PASCAL VOC)."""
    power: float = 1.0
    """The learning rate falls as (1 - step / steps) to this power, ..."""
    min_lr: float = 0.0
    """... towards this."""
    warmup: int = 1500
    """Steps over which it rises linearly at first; 0: none."""
    warmup_start: float = 1e-6
    """Factor of the learning rate that the rise begins with."""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; it must be > 0")
        for name in ("bias_lr", "backbone_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be > 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        for name in ("weight_decay", "power", "warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if not 0 <= self.min_lr <= self.lr:
            raise ValueError(f"min_lr is {self.min_lr}; it must be in [0, lr = {self.lr}]")
        if not 0 <= self.warmup_start <= 1:
            raise ValueError(f"warmup_start is {self.warmup_start}; it must be in [0, 1]")

    def learning_rate(self, step: int, total_steps: int) -> float:
        """Return the learning rate of step number `step`, from 0, of `total_steps`.

        Source: MMSegmentation's `poly` policy with linear warm-up, which all published runs used.
        """
        rate = (self.lr - self.min_lr) * (1 - step / total_steps) ** self.power + self.min_lr
        if step < self.warmup:
            rate *= 1 - (1 - step / self.warmup) * (1 - self.warmup_start)
        return rate


def build_optimizer(model: Segmentor, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimiser; each of its groups carries `rate`, its factor of the learning rate."""
    sgd = config.kind == "sgd"
    groups = parameter_groups(model, config)
    if sgd:
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.beta1)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def parameter_groups(model: Segmentor, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Part the parameters by weight decay and factor of the learning rate; empty groups are left out."""
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            in_backbone = path.startswith("backbone.")
            decays = _decays(config.decay, module, name, in_backbone)
            rate = (config.bias_lr if name == "bias" else 1.0) * (config.backbone_lr if in_backbone else 1.0)
            key = (config.weight_decay if decays else 0.0, rate)
            found.setdefault(key, []).append(parameter)
    return [{"params": parameters, "weight_decay": decay, "rate": rate} for (decay, rate), parameters in found.items()]


def _decays(decay: Decay, module: nn.Module, name: str, in_backbone: bool) -> bool:
    if decay == "convolutions":
        return isinstance(module, nn.Conv2d) and name == "weight"
    # Norms alone have parameters without being convolutions, but for VAN's layer scales and a Hamburger's gates.
    is_norm = not isinstance(module, nn.Conv2d) and name in ("weight", "bias")
    return decay == "all" or not (in_backbone and is_norm)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's learning rate to its factor times a rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]

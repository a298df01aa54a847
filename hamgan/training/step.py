"""One optimiser step of each network: the D phase and the G phase, as plain functions.

A phase takes a list of micro-batches, adds up their gradients, averages them over the processes once, and lets the
optimiser step. It returns its statistics as tensors on the device: nothing here waits for the device.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from hamgan import dist
from hamgan.nn import tensor_kernels
from hamgan.nn.spectral_norm import SpectralNorm
from hamgan.training.augment import AugmentConfig, augment
from hamgan.training.losses import LossName, add_orthogonal_gradient, d_loss, g_loss, gradient_penalty
from hamgan.training.noise import Noise

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""G(z, y, keys) or D(x, y, keys), the keys being those of fresh ham bases."""
Statistics = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """The objective of both networks."""

    loss: LossName = "hinge"
    """hinge, non_saturating, or relativistic (R3GAN's, meant with r1_gamma and r2_gamma)."""
    r1_gamma: float = 0.0
    """Weight of the gradient penalty on real images, as gamma / 2; 0: none."""
    r2_gamma: float = 0.0
    """Weight of the gradient penalty on generated images, as gamma / 2; 0: none."""
    power_iterations: Literal["forward", "step"] = "forward"
    """How often spectral norm takes its power iteration: at every training forward, as published, or once an optimiser step
    of the network whose weights they are."""
    penalty_every: int = 16
    """Penalties are taken in every so many-th D step, multiplied by as many (lazy regularisation)."""
    d_orthogonal: float = 0.0
    """Strength of BigGAN's orthogonal regularisation of D; 0: none."""
    g_orthogonal: float = 0.0
    """Strength of BigGAN's orthogonal regularisation of G; 0: none."""

    def __post_init__(self) -> None:
        for name in ("r1_gamma", "r2_gamma", "d_orthogonal", "g_orthogonal"):
            if getattr(self, name) < 0:
                raise ValueError(f"objective.{name} is {getattr(self, name)}; it must be at least 0")
        if self.penalty_every < 1:
            raise ValueError(f"objective.penalty_every is {self.penalty_every}; it must be at least 1")

    def penalizes(self, d_step: int) -> bool:
        """Say whether D's step of this number, from 0, takes the gradient penalties."""
        return bool(self.r1_gamma or self.r2_gamma) and d_step % self.penalty_every == 0

    def holds(self, *, optimizes: bool, index: int) -> bool:
        """Say whether a network's singular vectors are held in a forward pass.

        Args:
            optimizes: Whether the phase is the network's own.
            index: Of the micro-batch, from 0.
        """
        return self.power_iterations == "step" and not (optimizes and index == 0)


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One micro-batch of real images with the noise of the generated ones beside it."""

    real: Tensor
    """(B, 3, H, W) in [-1, 1]."""
    y: Tensor
    """Classes of the real images, (B,)."""
    noise: Noise
    """Of as many generated images."""

    def fake_classes(self, objective: StepConfig) -> Tensor:
        """Return the classes of the generated images: drawn; the real ones' where a loss pairs real with fake."""
        return self.y if objective.loss == "relativistic" else self.noise.y


@dataclass(frozen=True, kw_only=True)
class Player:
    """A network, the way to call it, and its optimiser."""

    network: nn.Module
    call: Network
    """The network itself or its compiled form."""
    optimizer: torch.optim.Optimizer
    replays: bool = False
    """Whether `call` replays CUDA graphs, each replay writing over what the last one put out: also over gradients."""

    @cached_property
    def weights(self) -> tuple[nn.Parameter, ...]:
        """The network's weights, looked up once."""
        return tuple(self.network.parameters())


Autocast = Callable[[], AbstractContextManager[object]]


def d_phase(
    G: Player,
    D: Player,
    batches: Sequence[MicroBatch],
    *,
    objective: StepConfig,
    augmentation: AugmentConfig,
    autocast: Autocast,
    penalize: bool,
) -> Statistics:
    """Take one optimiser step of D.

    Args:
        G: Its weights get no gradient; its batch norm and spectral norm advance, as published.
        D: Updated in place.
        batches: The micro-batches of this process.
        objective: The loss.
        augmentation: Of real and generated images alike.
        autocast: Opens the precision context of the networks.
        penalize: Whether this step takes the gradient penalties.

    Returns:
        Means over the micro-batches: d_loss, real_logits, fake_logits, d_accuracy_real, d_accuracy_fake, d_penalty, and
        the gradient's norm d_grad_norm.
    """
    _begin_phase(D, held=G)
    parts = []
    for index, batch in enumerate(batches):
        _begin(G, D)
        noise, y = batch.noise, batch.fake_classes(objective)
        with torch.no_grad(), autocast(), _held(G, objective.holds(optimizes=False, index=index)):
            fake = G.call(noise.z, y, noise.keys_g)
        images = torch.cat([fake.float(), batch.real])
        images = augment(images, torch.cat([noise.augment_fake, noise.augment_real]), augmentation)
        images = images.requires_grad_(penalize)
        with autocast(), _held(D, objective.holds(optimizes=True, index=index)):
            logits = D.call(images, torch.cat([y, batch.y]), torch.cat([noise.keys_d_fake, noise.keys_d_real]))
        fake_logits, real_logits = logits.float().chunk(2)
        loss = d_loss(objective.loss, real_logits, fake_logits)
        penalty = torch.zeros((), device=loss.device)
        if penalize:
            penalty = _penalty(logits, images, objective)
        ((loss + penalty * objective.penalty_every) / len(batches)).backward()
        _keep_gradients(D, first=index == 0, last=index == len(batches) - 1)
        parts.append(
            {
                "d_loss": loss.detach(),
                "d_penalty": penalty.detach(),
                "real_logits": real_logits.detach().mean(),
                "fake_logits": fake_logits.detach().mean(),
                "d_accuracy_real": (real_logits.detach() > 0).float().mean(),
                "d_accuracy_fake": (fake_logits.detach() < 0).float().mean(),
            }
        )
    norm = _finish(D, objective.d_orthogonal)
    return _mean(parts) | {"d_grad_norm": norm}


def g_phase(
    G: Player,
    D: Player,
    batches: Sequence[MicroBatch],
    *,
    objective: StepConfig,
    augmentation: AugmentConfig,
    autocast: Autocast,
) -> Statistics:
    """Take one optimiser step of G; arguments as in `d_phase`.

    Returns:
        Means over the micro-batches: g_loss, and the gradient's norm g_grad_norm.
    """
    _begin_phase(G, held=D)
    parts = []
    for index, batch in enumerate(batches):
        _begin(G, D)
        noise, y = batch.noise, batch.fake_classes(objective)
        with autocast(), _held(G, objective.holds(optimizes=True, index=index)):
            fake = G.call(noise.z, y, noise.keys_g)
        images, keys = augment(fake.float(), noise.augment_fake, augmentation), noise.keys_d_fake
        if objective.loss == "relativistic":
            real = augment(batch.real, noise.augment_real, augmentation)
            images, y = torch.cat([images, real]), torch.cat([y, batch.y])
            keys = torch.cat([keys, noise.keys_d_real])
        with autocast(), _held(D, objective.holds(optimizes=False, index=index)):
            logits = D.call(images, y, keys)
        fake_logits, *rest = logits.float().split(len(noise.z))
        loss = g_loss(objective.loss, fake_logits, rest[0] if rest else None)
        (loss / len(batches)).backward()
        _keep_gradients(G, first=index == 0, last=index == len(batches) - 1)
        parts.append({"g_loss": loss.detach()})
    norm = _finish(G, objective.g_orthogonal)
    return _mean(parts) | {"g_grad_norm": norm}


def _begin_phase(player: Player, *, held: Player) -> None:
    """Have the weights of one network alone take gradients, of which there are none yet."""
    for weight in held.weights:
        weight.requires_grad_(False)
    for weight in player.weights:
        weight.requires_grad_(True)
        weight.grad = None


def _begin(*players: Player) -> None:
    """Say, where CUDA graphs are replayed, that a micro-batch begins and what earlier ones put out may be written over."""
    if any(player.replays for player in players):
        torch.compiler.cudagraph_mark_step_begin()


def _keep_gradients(player: Player, *, first: bool, last: bool) -> None:
    """Copy the first micro-batch's gradients, to which others are added, out of the CUDA graphs' memory."""
    if not player.replays or not first or last:
        return
    for weight in player.weights:
        if weight.grad is not None:
            weight.grad = weight.grad.clone()


@contextmanager
def _held(player: Player, held: bool) -> Iterator[None]:
    """Hold a network's singular vectors as they are within the context, if so wanted."""
    norms = [module for module in player.network.modules() if isinstance(module, SpectralNorm)] if held else []
    for norm in norms:
        norm.held = True
    try:
        yield
    finally:
        for norm in norms:
            norm.held = False


def _penalty(logits: Tensor, images: Tensor, objective: StepConfig) -> Tensor:
    """Return gamma / 2 times the gradient penalties; the first half of the batch is generated, the second real."""
    fake, real = gradient_penalty(logits, images).chunk(2)
    return objective.r1_gamma / 2 * real.mean() + objective.r2_gamma / 2 * fake.mean()


def _finish(player: Player, orthogonal: float) -> Tensor:
    """Average the gradients over the processes, regularise, step; return the gradient's norm before the step."""
    if orthogonal:
        add_orthogonal_gradient(player.network, orthogonal)
    gradients = [weight.grad for weight in player.weights if weight.grad is not None]
    dist.all_reduce_mean_coalesced(gradients)
    norm = total_norm(gradients)
    player.optimizer.step()
    return norm


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all numbers of some tensors, a scalar."""
    if tensor_kernels.takes_list(tensors):
        return tensor_kernels.total_norm(tensors)
    return torch.stack(torch._foreach_norm(list(tensors))).norm()


def _mean(parts: Sequence[Statistics]) -> Statistics:
    return {key: torch.stack([part[key] for part in parts]).mean() for key in parts[0]}

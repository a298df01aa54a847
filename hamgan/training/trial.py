"""A whole training step on random images, to be timed or measured: no data, no run folder."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from hamgan.device import resolve_autocast
from hamgan.models.discriminator import Discriminator
from hamgan.models.generator import Generator
from hamgan.training.config import TrainConfig
from hamgan.training.ema import MovingAverage
from hamgan.training.noise import NoiseSource, Phase
from hamgan.training.run import build_player, copy_average
from hamgan.training.step import MicroBatch, Player, d_phase, g_phase


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Networks and their step; a call takes `d_steps` D steps, one G step and the EMA's."""

    G: Player
    D: Player
    take: Callable[[], None]

    def __call__(self) -> None:
        """Take a step."""
        self.take()


def trial_step(config: TrainConfig, device: torch.device) -> Trial:
    """Build networks and optimisers and the step that `loop` takes, without penalties, for one process.

    Args:
        config: Everything that the step depends on.
        device: Where it is computed.
    """
    torch.manual_seed(config.seed)
    G = build_player(Generator(config.generator), config.g_optimizer, config, device)
    D = build_player(Discriminator(config.discriminator), config.d_optimizer, config, device)
    average = MovingAverage(copy_average(G.network), G.network, config.ema)
    micro, num_micro = config.micro_batches(1)
    _, autocast = resolve_autocast(config.precision, device)
    resolution, num_classes = config.generator.resolution, config.generator.num_classes
    real = (torch.rand(micro, 3, resolution, resolution) * 2 - 1).to(device, memory_format=torch.channels_last)
    y = torch.randint(num_classes, (micro,)).to(device)
    noise = NoiseSource(
        seed=config.seed,
        z_dim=config.generator.z_dim,
        num_classes=num_classes,
        batch_size=config.batch_size,
        device=device,
    )
    objective, augmentation = config.objective, config.augment
    take_d_step = partial(d_phase, G, D, objective=objective, augmentation=augmentation, autocast=autocast)
    take_g_step = partial(g_phase, G, D, objective=objective, augmentation=augmentation, autocast=autocast)
    step = 0

    def batches(phase: Phase, repeat: int) -> list[MicroBatch]:
        starts = range(0, num_micro * micro, micro)
        return [
            MicroBatch(real=real, y=y, noise=noise.draw(step, phase, repeat, start, start + micro)) for start in starts
        ]

    def take() -> None:
        nonlocal step
        for repeat in range(config.d_steps):
            take_d_step(batches("d", repeat), penalize=False)
        take_g_step(batches("g", 0))
        step += 1
        average.update(step)

    return Trial(G=G, D=D, take=take)

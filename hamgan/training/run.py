"""What a run carries from step to step: networks, optimisers, counters; how it begins, is saved and is taken up again."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch

from hamgan import config as configuration
from hamgan import dist
from hamgan.data.hdf5 import TrainingFile
from hamgan.data.subset import Subset, hold_out
from hamgan.models.discriminator import Discriminator
from hamgan.models.generator import Generator
from hamgan.training import run_folder
from hamgan.training.config import OptimizerConfig, TrainConfig
from hamgan.training.sentinel import SentinelState
from hamgan.training.step import Player

STATE_VERSION = 2
"""Of what a checkpoint holds; 2: hams' bases follow from keys, the sentinel's memory."""


@dataclass(kw_only=True)
class Run:
    """What the loop carries from step to step."""

    config: TrainConfig
    device: torch.device
    data: TrainingFile
    shown: Subset
    """The images to train on."""
    held_out: Subset
    """Images never shown to D."""
    G: Player
    D: Player
    G_ema: Generator
    step: int = 0
    """G steps taken."""
    best: float = float("inf")
    """Lowest quick evaluation so far."""
    sentinel: SentinelState = field(default_factory=SentinelState)

    @property
    def nimg(self) -> int:
        """Real images shown to D."""
        return self.step * self.config.batch_size * self.config.d_steps


def build_run(config: TrainConfig, device: torch.device, data: TrainingFile) -> Run:
    """Build networks and optimisers, the same on every process."""
    torch.manual_seed(config.seed)
    G = Generator(config.generator).to(device).to(memory_format=torch.channels_last)
    D = Discriminator(config.discriminator).to(device).to(memory_format=torch.channels_last)
    dist.broadcast_module(G)
    dist.broadcast_module(D)
    shown, held_out = hold_out(data, config.data.hold_out, config.seed)
    return Run(
        config=config,
        device=device,
        data=data,
        shown=shown,
        held_out=held_out,
        G=_player(G, config.g_optimizer, config.compile),
        D=_player(D, config.d_optimizer, config.compile),
        G_ema=copy.deepcopy(G).eval().requires_grad_(False),
    )


def _player(network: torch.nn.Module, optimizer: OptimizerConfig, compiled: bool) -> Player:
    adam = torch.optim.Adam(
        network.parameters(),
        lr=optimizer.lr,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        fused=True,
    )
    return Player(network=network, call=torch.compile(network) if compiled else network, optimizer=adam)


def begin_again(run: Run) -> None:
    """Put a run back to its first step, with the weights that its seed gives."""
    fresh = build_run(run.config, run.device, run.data)
    for player, new in ((run.G, fresh.G), (run.D, fresh.D)):
        player.network.load_state_dict(new.network.state_dict())
        player.optimizer.load_state_dict(new.optimizer.state_dict())
    run.G_ema.load_state_dict(fresh.G_ema.state_dict())
    run.step, run.best, run.sentinel = 0, float("inf"), SentinelState()


def set_learning_rates(run: Run, factor: float) -> None:
    """Set both optimisers' learning rates to a multiple of the configured ones, lowered by every rollback."""
    factor *= run.config.sentinel.lr_factor**run.sentinel.rollbacks
    for player, optimizer in ((run.G, run.config.g_optimizer), (run.D, run.config.d_optimizer)):
        player.optimizer.param_groups[0]["lr"] = optimizer.lr * factor


def state_of(run: Run) -> dict[str, Any]:
    """Return everything that going on needs. Noise and data order follow from the seed and the step (see `noise`)."""
    return {
        "version": STATE_VERSION,
        "config": configuration.to_mapping(run.config),
        "step": run.step,
        "nimg": run.nimg,
        "best": run.best,
        "data": run.data.fingerprint,
        "sentinel": run.sentinel.to_mapping(),
        "G": run.G.network.state_dict(),
        "D": run.D.network.state_dict(),
        "G_ema": run.G_ema.state_dict(),
        "g_optimizer": run.G.optimizer.state_dict(),
        "d_optimizer": run.D.optimizer.state_dict(),
    }


def restore(run: Run, state: dict[str, Any]) -> None:
    """Put a checkpoint's state into a run.

    Raises:
        ValueError: If the checkpoint is of another configuration, of other images or of another version of hamgan.
    """
    if state.get("version") != STATE_VERSION:
        raise ValueError(
            f"the checkpoint's state is of version {state.get('version', 1)}; this hamgan goes on from version {STATE_VERSION}"
        )
    saved = configuration.from_mapping(TrainConfig, state["config"], "checkpoint")
    if rows := run_folder.fixed_differences(saved, run.config):
        raise ValueError(f"the checkpoint is of another configuration: {'; '.join(rows[:3])}")
    if state["data"] != run.data.fingerprint:
        raise ValueError(f"{run.data.path}: holds other images than this run began with; give it its file back")
    run.G.network.load_state_dict(state["G"])
    run.D.network.load_state_dict(state["D"])
    run.G_ema.load_state_dict(state["G_ema"])
    run.G.optimizer.load_state_dict(state["g_optimizer"])
    run.D.optimizer.load_state_dict(state["d_optimizer"])
    run.step, run.best = int(state["step"]), float(state["best"])
    run.sentinel = SentinelState(**state["sentinel"])

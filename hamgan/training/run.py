"""What a run carries from step to step: networks, optimisers, counters; how it begins, is saved and is taken up again."""

import copy
import reprlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hamgan import checkpoint, dist
from hamgan import config as configuration
from hamgan.data.hdf5 import TrainingFile
from hamgan.data.subset import Subset, hold_out
from hamgan.device import Compile, uses_cuda_graphs
from hamgan.models.discriminator import Discriminator
from hamgan.models.generator import Generator
from hamgan.training import run_folder
from hamgan.training.adam import Adam
from hamgan.training.config import OptimizerConfig, TrainConfig
from hamgan.training.sentinel import SentinelState
from hamgan.training.step import Network, Player

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
    G = build_player(Generator(config.generator), config.g_optimizer, config, device)
    D = build_player(Discriminator(config.discriminator), config.d_optimizer, config, device)
    shown, held_out = hold_out(data, config.data.hold_out, config.seed)
    return Run(
        config=config,
        device=device,
        data=data,
        shown=shown,
        held_out=held_out,
        G=G,
        D=D,
        G_ema=copy_average(G.network),
    )


def build_player(
    network: Generator | Discriminator, optimizer: OptimizerConfig, config: TrainConfig, device: torch.device
) -> Player:
    """Move a network to its device and layout, the same on every process, and build its optimiser."""
    network = network.to(device).to(memory_format=torch.channels_last)
    dist.broadcast_module(network)
    network.recompute = config.recompute
    adam = Adam(
        network.parameters(),
        lr=optimizer.lr,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        fused=True,
    )
    return Player(
        network=network,
        call=compiled(network, config.compile) if config.compile else network,
        optimizer=adam,
        replays=uses_cuda_graphs(config.compile, device),
    )


def compiled(network: Generator | Discriminator, mode: Compile = True) -> Network:
    """Compile a network for the shapes that it sees: training has few, and graphs of any shape are slower or fail."""
    return torch.compile(network, dynamic=False, mode=mode if isinstance(mode, str) else None)


def copy_average(network: torch.nn.Module) -> Generator:
    """Return the generator that follows G's average, as it begins."""
    assert isinstance(network, Generator)
    return copy.deepcopy(network).eval().requires_grad_(False)


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
        ValueError: If the checkpoint is of another configuration, of other images or of another version of hamgan, or if it is
            not what `state_of` returns. Its checksum proves that it is what was written, not who wrote it.
    """
    if state.get("version") != STATE_VERSION:
        raise ValueError(
            f"the checkpoint's state is of version {reprlib.repr(state.get('version', 1))}; this hamgan goes on from "
            f"version {STATE_VERSION}"
        )
    with checkpoint.refusing_damage():
        _restore(run, state)


def _restore(run: Run, state: dict[str, Any]) -> None:
    saved = configuration.from_mapping(TrainConfig, state["config"], "checkpoint")
    if rows := run_folder.fixed_differences(saved, run.config):
        raise ValueError(f"the checkpoint is of another configuration: {'; '.join(rows[:3])}")
    if state["data"] != run.data.fingerprint:
        raise ValueError(f"{run.data.path}: holds other images than this run began with; give it its file back")
    step, best, sentinel = state["step"], state["best"], SentinelState.from_mapping(state["sentinel"])
    if type(step) is not int or step < 0 or type(best) is not float:
        raise ValueError(f"the checkpoint's step is {reprlib.repr(step)} and its best {reprlib.repr(best)}")
    networks = {"G": run.G.network, "D": run.D.network, "G_ema": run.G_ema}
    for name, network in networks.items():
        checkpoint.check_tensors(name, network.state_dict(), state[name])
    optimizers = {"g_optimizer": run.G.optimizer, "d_optimizer": run.D.optimizer}
    moments = {name: _moments(name, optimizer, state[name]["state"]) for name, optimizer in optimizers.items()}
    for name, network in networks.items():
        network.load_state_dict(state[name])
    for name, optimizer in optimizers.items():
        # The groups' settings are the configuration's, not the file's.
        optimizer.load_state_dict(optimizer.state_dict() | {"state": moments[name]})
    run.step, run.best, run.sentinel = step, best, sentinel


def _moments(where: str, optimizer: torch.optim.Optimizer, saved: dict[int, dict[str, Tensor]]) -> dict[int, Any]:
    """Check Adam's state and copy it into tensors laid out like the weights: its fused step trusts sizes blindly."""
    if not saved:  # a run that was put back to its beginning
        return {}
    weights = optimizer.param_groups[0]["params"]
    if list(saved) != list(range(len(weights))):
        raise ValueError(
            f"the checkpoint's {where} is not of this network: it has {len(saved)} of {len(weights)} entries"
        )
    state = {}
    for index, weight in enumerate(weights):
        ours = {"step": torch.zeros(()), "exp_avg": weight.detach(), "exp_avg_sq": weight.detach()}
        checkpoint.check_tensors(f"{where}[{index}]", ours, saved[index])
        state[index] = {key: torch.empty_like(tensor).copy_(saved[index][key]) for key, tensor in ours.items()}
    return state

"""What a run will cost, counted without computing: parameters, FLOPs, memory.

The networks are built on torch's meta device, where tensors have shapes and no values, and one D phase and one G phase run on
two images: the same code as in training, so that the counts cannot drift from it.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hamgan.config import dump_toml
from hamgan.device import resolve_autocast, resolve_device
from hamgan.models.discriminator import Discriminator
from hamgan.models.generator import Generator
from hamgan.training import run_folder
from hamgan.training.augment import NUM_RANDOM
from hamgan.training.config import TrainConfig
from hamgan.training.noise import Noise
from hamgan.training.step import MicroBatch, Player, d_phase, g_phase

BATCH = 2
RUNTIME_BYTES = 600e6
"""What torch and its libraries hold on a CPU before the first tensor; measured, rounded up."""
BF16_ACTIVATIONS = 0.6
"""Bytes of activations under bfloat16 autocast over those in float32: norms and the ham's codes stay float32."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Counts of one configuration. A multiplication and an addition are two FLOPs."""

    g_parameters: int
    d_parameters: int
    g_flops: float
    """One generated image."""
    d_flops: float
    """One judged image."""
    step_flops: float
    """One G step with its D steps, forward and backward, per image of the batch."""
    state_bytes: float
    """Weights, gradients, Adam's moments and the EMA."""
    activation_bytes: float
    """Kept for the backward pass of the larger phase, float32, per image of a micro-batch."""

    def memory_bytes(self, micro_batch: int, *, bf16: bool) -> float:
        """Return what one process needs, roughly."""
        factor = BF16_ACTIVATIONS if bf16 else 1.0
        return RUNTIME_BYTES + self.state_bytes + self.activation_bytes * micro_batch * factor


def estimate(config: TrainConfig) -> Estimate:
    """Count a configuration's costs."""
    try:
        with torch.device("meta"):
            G, D = Generator(config.generator), Discriminator(config.discriminator)
    except (RuntimeError, TypeError) as error:  # sizes that no tensor can have
        raise ValueError(f"the networks cannot be built ({str(error).splitlines()[0][:200]})") from None
    players = (_idle_player(G), _idle_player(D))
    resolution = config.generator.resolution
    meta = torch.device("meta")
    images = torch.empty(BATCH, 3, resolution, resolution, device=meta)
    y = torch.zeros(BATCH, dtype=torch.int64, device=meta)
    random = torch.empty(BATCH, NUM_RANDOM, device=meta)
    z = torch.empty(BATCH, config.generator.z_dim, device=meta)
    batch = MicroBatch(
        real=images,
        y=y,
        noise=Noise(z=z, y=y, augment_fake=random, augment_real=random, keys_g=y, keys_d_fake=y, keys_d_real=y),
    )

    def d_step() -> object:
        return d_phase(
            *players,
            [batch],
            objective=config.objective,
            augmentation=config.augment,
            autocast=contextlib.nullcontext,
            penalize=False,
        )

    def g_step() -> object:
        return g_phase(
            *players,
            [batch],
            objective=config.objective,
            augmentation=config.augment,
            autocast=contextlib.nullcontext,
        )

    with torch.no_grad():
        g_flops = _flops(lambda: G(z, y))
        d_flops = _flops(lambda: D(images, y))
    with _saved_bytes((G, D)) as d_saved:
        step_flops = config.d_steps * _flops(d_step)
    with _saved_bytes((G, D)) as g_saved:
        step_flops += _flops(g_step)
    g_parameters, d_parameters = (sum(p.numel() for p in net.parameters()) for net in (G, D))
    return Estimate(
        g_parameters=g_parameters,
        d_parameters=d_parameters,
        g_flops=g_flops,
        d_flops=d_flops,
        step_flops=step_flops,
        state_bytes=4.0 * (5 * g_parameters + 4 * d_parameters),
        activation_bytes=max(sum(d_saved), sum(g_saved)) / BATCH,
    )


def dry_run(config: TrainConfig, *, preset: str, root: Path, run_dir: Path | None) -> str:
    """Return what `--dry-run` prints: the resolved configuration, its costs, and the run folder that it would use."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    micro, num_micro = config.micro_batches(world_size)
    device = resolve_device(config.device)
    precision, _ = resolve_autocast(config.precision, device)
    counts = estimate(config)
    memory = counts.memory_bytes(micro, bf16=precision == "bf16")
    folder = run_dir or run_folder.choose(root, preset, config)
    state = "goes on" if run_folder.snapshots(folder) else "new"
    return "\n".join(
        [
            dump_toml(config),
            f"parameters: G {counts.g_parameters:,}, D {counts.d_parameters:,}",
            f"FLOPs per image: G forward {counts.g_flops / 1e9:.3f} G, D forward {counts.d_flops / 1e9:.3f} G, "
            f"training step {counts.step_flops / 1e9:.3f} G",
            f"memory: about {memory / 1e9:.1f} GB a process ({device.type}, {precision}, {num_micro} x {micro} images)",
            f"run folder: {folder} ({state})",
        ]
    )


def _idle_player(network: nn.Module) -> Player:
    return Player(network=network, call=network, optimizer=torch.optim.SGD(network.parameters(), lr=0.0))


def _flops(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / BATCH


@contextmanager
def _saved_bytes(networks: tuple[nn.Module, ...]) -> Iterator[list[int]]:
    """Collect the sizes of the distinct storages that autograd keeps, without the networks' own weights."""
    own = {p.untyped_storage()._cdata for net in networks for p in net.parameters()}
    seen: dict[int, Tensor] = {}
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in seen:
            seen[storage._cdata] = tensor  # held, so that no other storage takes its address
            sizes.append(storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes

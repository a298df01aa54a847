"""What a run will cost on this machine, and which micro-batch fits: `hamgan plan`.

FLOPs, parameters and memory are counted (`estimate`); speed is measured on a few real steps, of a smaller batch or narrower
networks where the run's own would take too long, and carried over by FLOPs.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hamgan.device import keep_memory, resolve_autocast, resolve_device
from hamgan.nn import kernel_library
from hamgan.training.config import TrainConfig, parse_duration
from hamgan.training.estimate import Estimate, estimate
from hamgan.training.trial import trial_step

SMALL_NORM_BATCH = 32
"""Images over which batch norm's statistics become coarse; the published recipes see 256 and more."""
MEMORY_SHARE = 0.9
"""Of the free memory that a run may take."""
TRIAL_STEPS = 3
TRIAL_SECONDS = 2.0
"""What one timed step may take, were it as fast as a large matrix product."""
TRIAL_BATCH = 4
"""The batch that a trial goes down to before it takes narrower networks."""
TRIAL_CHANNELS = 8
"""The width that it goes down to."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Steps that were timed."""

    flops_per_second: float
    """Of a training step, by its counted FLOPs."""
    batch: int
    channels: int
    """Of G; below the run's own, the speed is a lower bound: narrow networks use a machine less well."""
    seconds: float
    """Median of a step."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `hamgan plan` finds out."""

    counts: Estimate
    device: str
    precision: str
    processes: int
    free_bytes: float
    """Memory that one process may plan with."""
    micro_batch: int
    """As configured."""
    fitting: int
    """The largest micro-batch that fits and divides a process's share; 0: not even one image does."""
    norm_batch: int
    """Images over which batch norm's statistics go, with the micro-batch that fits."""
    speed: Speed
    images_per_second: float
    """Expected, all processes together."""


def plan(config: TrainConfig, *, processes: int = 1, memory_gb: float | None = None) -> Plan:
    """Count, measure and propose.

    Args:
        config: Of the run.
        processes: How many will share the batch: on GPUs one each, on a CPU all on this machine's cores.
        memory_gb: Memory of one process, GB; None: what is free now.

    Raises:
        ValueError: If an argument is out of range, or the batch cannot be shared.
    """
    if processes < 1:
        raise ValueError(f"--processes is {processes}; it must be at least 1")
    if memory_gb is not None and not 0 < memory_gb < float("inf"):
        raise ValueError(f"--memory is {memory_gb}; it must be a number of GB above 0")
    micro, num_micro = config.micro_batches(processes)
    device = resolve_device(config.device)
    precision, _ = resolve_autocast(config.precision, device)
    counts = estimate(config)
    free = free_memory(device, processes) if memory_gb is None else memory_gb * 1e9
    share = micro * num_micro
    fits = [
        size
        for size in range(1, share + 1)
        if share % size == 0 and counts.memory_bytes(size, bf16=precision == "bf16") <= MEMORY_SHARE * free
    ]
    fitting = max((size for size in fits if size <= micro), default=0)
    speed = measure_speed(config, counts, device)
    together = 1 if device.type == "cpu" else processes  # a CPU's processes share its cores
    return Plan(
        counts=counts,
        device=device.type,
        precision=precision,
        processes=processes,
        free_bytes=free,
        micro_batch=micro,
        fitting=fitting,
        norm_batch=(fitting or micro) * (processes if config.generator.cross_replica else 1),
        speed=speed,
        images_per_second=together * speed.flops_per_second / counts.step_flops,
    )


def free_memory(device: torch.device, processes: int) -> float:
    """Return the bytes that one process may take: of its GPU, or its part of what this machine has free."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = float(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux
        free = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return free / processes


def measure_speed(config: TrainConfig, counts: Estimate, device: torch.device) -> Speed:
    """Time whole training steps, as large as `TRIAL_SECONDS` allow."""
    precision, _ = resolve_autocast(config.precision, device)
    budget = TRIAL_SECONDS * matrix_product_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    small = replace(config, micro_batch=0, batch_size=config.micro_batch or config.batch_size, compile=False)
    while small.batch_size > TRIAL_BATCH and counts.step_flops * small.batch_size > budget:
        small = replace(small, batch_size=small.batch_size // 2)
    while min(small.generator.channels, small.discriminator.channels) > TRIAL_CHANNELS and (
        counts.step_flops * small.batch_size > budget
    ):
        small = replace(
            small,
            generator=replace(small.generator, channels=small.generator.channels // 2),
            discriminator=replace(small.discriminator, channels=small.discriminator.channels // 2),
        )
        counts = estimate(small)
    keep_memory(device)
    seconds = _median_seconds(trial_step(small, device), device)
    return Speed(
        flops_per_second=counts.step_flops * small.batch_size / seconds,
        batch=small.batch_size,
        channels=small.generator.channels,
        seconds=seconds,
    )


def matrix_product_rate(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """Return the FLOP/s of a square matrix product."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2.0 * size**3 / _median_seconds(lambda: torch.mm(a, b), device)


def _median_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the median of `TRIAL_STEPS` after one to warm up."""
    times = []
    for _ in range(TRIAL_STEPS + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def describe(config: TrainConfig, found: Plan) -> str:
    """Return what the command prints."""
    counts, speed, bf16 = found.counts, found.speed, found.precision == "bf16"
    share = config.batch_size // found.processes
    memory = counts.memory_bytes(found.fitting or 1, bf16=bf16) / 1e9
    threads = (
        f", {torch.get_num_threads()} threads, kernels {kernel_library.instructions()}" if found.device == "cpu" else ""
    )
    lines = [
        f"device       {found.device}{threads}, {found.precision}, {found.free_bytes / 1e9:.1f} GB a process",
        f"parameters   G {counts.g_parameters:,}, D {counts.d_parameters:,}",
        f"FLOPs        an image: G forward {counts.g_flops / 1e9:.3f} G, D forward {counts.d_flops / 1e9:.3f} G, "
        f"training step {counts.step_flops / 1e9:.3f} G",
        f"expected     {found.images_per_second:.3g} images/s, {found.images_per_second / config.batch_size:.3g} steps/s"
        + _length(config, found),
        f"measured     steps of {speed.batch} images at width {speed.channels}: {speed.seconds * 1e3:.0f} ms, "
        f"{speed.flops_per_second / 1e9:.0f} GFLOP/s"
        + ("" if speed.channels == config.generator.channels else "; carried over by FLOPs, wider is rather faster"),
    ]
    if found.fitting:
        lines.append(
            f"memory       about {memory:.1f} GB a process at {share // found.fitting} x {found.fitting} images"
        )
    if found.fitting == found.micro_batch:
        lines.append(f"fits         micro_batch {found.fitting}, {share // found.fitting} a step, as configured")
    elif found.fitting:
        lines.append(
            f"proposed     --micro_batch {found.fitting}: gradients of {share // found.fitting} micro-batches are added up; "
            f"{found.micro_batch} images need {counts.memory_bytes(found.micro_batch, bf16=bf16) / 1e9:.1f} GB"
        )
    else:
        lines.append(f"does not fit one image needs about {memory:.1f} GB; take fewer channels or a larger device")
    if found.norm_batch < SMALL_NORM_BATCH:
        lines.append(
            f"warning: batch norm sees {found.norm_batch} images at a time; below {SMALL_NORM_BATCH} its statistics are "
            "coarse, and adding up gradients does not help it: take more processes, fewer channels or a smaller resolution"
        )
    return "\n".join(lines)


def _length(config: TrainConfig, found: Plan) -> str:
    duration = parse_duration("duration", config.duration)
    if duration.unit == "epochs":  # of a data set that need not be here
        return ""
    steps = duration.steps(config.batch_size * config.d_steps, 0)
    hours = steps * config.batch_size / found.images_per_second / 3600
    length = (
        f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} hours" if hours >= 2 else f"{hours * 60:.0f} minutes"
    )
    return f"; {config.duration} in {length}"

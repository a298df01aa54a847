"""How long does a whole training step take, and how much memory, against BigGAN-PyTorch's way of doing it?

One D step, one G step and the EMA, on random images. The other side is `reference/`: the same networks written plainly
(unfused, NCHW, a power iteration in each forward, gradients toggled, plain Adam), in float32, as the public code runs. The
sides take turns, so that what else the machine does hits all alike, each in a process of its own, so that none meets a heap
that another has left. Ours keeps freed memory, as training does; `reference` is left with the C library's ways, as the public
code is; `--reference-kept` adds it with memory kept: what lies between is the system's time for finding and clearing pages.

MFU: the floating-point operations of the *reference's* step over the time, as a share of the measured float32 matrix product.
Above 100 % means faster than the reference's operations could run at all in float32.

Memory: each side in a process of its own, which takes a step (so that gradients and Adam's moments exist), notes what it
holds, and takes two more; `step` is what these add to it at the most (Linux's VmHWM), `process` is the highest in all. malloc
is told to give every large block back at once, so that the figures count what is alive, not what the heap keeps.

Run: python benchmarks/train_step.py [CASE ...] [--repeats N] [--no-memory] [--reference-kept] [--reference-bf16] [--recompute]
     [--compile]
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from measure import memory_of, print_memory, serve, take_turns_apart
from reference.step import Draw, ReferenceStep
from torch.utils.flop_counter import FlopCounterMode

from hamgan.device import keep_memory
from hamgan.training.config import TrainConfig, load_config
from hamgan.training.trial import trial_step

QUICK = ["biggan128", "hamgan128", "--repeats", "5"]
CPU = torch.device("cpu")
CONFIGS = Path(__file__).parents[1] / "configs"
CASES = {
    "biggan128": ("imagenet128_biggan.toml", 32, 8),
    "hamgan128": ("imagenet128_hamgan_strong.toml", 16, 8),
    "emoji32": ("emoji32.toml", 16, 32),
    "emoji64": ("emoji64.toml", 16, 16),
}
"""Preset, width, batch."""
DEFAULT_CASES = ("biggan128", "hamgan128", "emoji32")
SIDES = ("reference", "fp32", "bf16")
REFERENCE_KEPT = ("reference-kept",)
REFERENCE_BF16 = ("reference-bf16",)
RECOMPUTE = ("fp32-recompute", "bf16-recompute")
COMPILE = ("fp32-compile", "bf16-compile")
ALL_SIDES = (*SIDES, *REFERENCE_KEPT, *REFERENCE_BF16, *RECOMPUTE, *COMPILE)


def _case(name: str) -> str:
    # Not `choices`: with any number of cases argparse would hold the empty list against them.
    if name not in CASES:
        raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(CASES)}")
    return name


def case_config(case: str, precision: str = "fp32") -> TrainConfig:
    """Return a case's configuration."""
    preset, channels, batch = CASES[case]
    overrides = [f"--{net}.channels={channels}" for net in ("generator", "discriminator")]
    return load_config(
        CONFIGS / preset, [*overrides, f"--batch_size={batch}", "--micro_batch=0", f"--precision={precision}"]
    )


def reference_step(config: TrainConfig, *, bf16: bool = False) -> Callable[[], None]:
    """Return the reference's whole training step."""
    return partial(ReferenceStep(config, bf16=bf16), random_draw(config))


def random_draw(config: TrainConfig) -> Draw:
    """Draw what a reference step is given."""
    g, batch = config.generator, config.batch_size
    torch.manual_seed(0)
    return Draw(
        real=torch.rand(batch, 3, g.resolution, g.resolution) * 2 - 1,
        y=torch.randint(g.num_classes, (batch,)),
        d_z=torch.randn(batch, g.z_dim),
        d_y=torch.randint(g.num_classes, (batch,)),
        g_z=torch.randn(batch, g.z_dim),
        g_y=torch.randint(g.num_classes, (batch,)),
    )


def build(case: str, side: str) -> Callable[[], None]:
    """Return the step of one side of a case."""
    if side.startswith("reference"):
        return reference_step(case_config(case), bf16=side.endswith("bf16"))
    precision, _, extra = side.partition("-")
    config = case_config(case, precision)
    return trial_step(replace(config, recompute=extra == "recompute", compile=extra == "compile"), CPU)


def matmul_peak(dtype: torch.dtype, size: int = 2048) -> float:
    """Return the best FLOP/s of a large square matrix product."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best = float("inf")
    for _ in range(7):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def print_case(case: str, *, repeats: int, memory: bool, sides: tuple[str, ...], peak: float) -> None:
    """Measure one case and print its table."""
    preset, channels, batch = CASES[case]
    with FlopCounterMode(display=False) as counter:
        build(case, "reference")()
    flops = counter.get_total_flops()
    seconds = take_turns_apart(__file__, {side: [case, "--serve", side] for side in sides}, repeats)
    print(f"\n### {preset.removesuffix('.toml')}, width {channels}, batch {batch}")
    print(f"\n{flops / batch / 1e9:.2f} GFLOP an image and step, the reference's way\n")
    print("| side | ms a step | images/s | speed-up | MFU | step, MB | of reference's | process, MB | of reference's |")
    print("|---|---|---|---|---|---|---|---|---|")
    first: tuple[float, float] | None = None
    for side in sides:
        row = [side, f"{seconds[side] * 1e3:.0f}", f"{batch / seconds[side]:.1f}"]
        row += [f"{seconds['reference'] / seconds[side]:.2f}", f"{flops / seconds[side] / peak:.0%}"]
        if memory:
            added, highest = memory_of(__file__, case, "--memory-of", side)
            first = first or (added, highest)
            row += [f"{added:.0f}", f"{added / first[0]:.2f}", f"{highest:.0f}", f"{highest / first[1]:.2f}"]
        else:
            row += [""] * 4
        print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=[], type=_case, metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--reference-kept", action="store_true", help="also the reference with freed memory kept")
    parser.add_argument("--reference-bf16", action="store_true", help="also run the reference under bf16 autocast")
    parser.add_argument("--recompute", action="store_true", help="also ours with gradient checkpointing")
    parser.add_argument("--compile", action="store_true", help="also ours through torch.compile, which takes minutes")
    for hidden in ("--memory-of", "--serve"):
        parser.add_argument(hidden, choices=ALL_SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print_memory(build(options.cases[0], options.memory_of))
        return
    if options.serve:
        if options.serve != "reference" and options.serve not in REFERENCE_BF16:
            keep_memory(CPU)
        serve(build(options.cases[0], options.serve))
        return
    sides = SIDES + REFERENCE_KEPT * options.reference_kept + REFERENCE_BF16 * options.reference_bf16
    sides += RECOMPUTE * options.recompute + COMPILE * options.compile
    peak, bf16_peak = matmul_peak(torch.float32), matmul_peak(torch.bfloat16)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians of {options.repeats}")
    print(f"matrix product of 2048: {peak / 1e9:.0f} GFLOP/s in float32, {bf16_peak / 1e9:.0f} in bfloat16")
    for case in options.cases or DEFAULT_CASES:
        print_case(case, repeats=options.repeats, memory=not options.no_memory, sides=sides, peak=peak)


if __name__ == "__main__":
    main()

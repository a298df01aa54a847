"""What does global context cost: a Hamburger against self-attention, forward and backward?

Whole blocks with their pointwise maps, gates open, without conditional norm, in training. The plain sides are `reference/`'s:
attention with pooled keys as plain products and by torch's scaled_dot_product_attention, and the Hamburger as its paper's
code writes it, all NCHW and in float32. Ours are channels_last, in float32 and under bfloat16 autocast. The sides take turns
within one process, so that what else the machine does hits all alike; medians.

Peak memory: each side in a process of its own, what a forward and a backward pass add at the most to what was held before
(Linux's VmHWM), with the output and the gradients. malloc is told to give every large block back at once, so that the figure
counts what is alive, not what the heap keeps.

Multiply-adds: of one image's forward pass, by torch's counter; attention's are those of the plain products.

Run: python benchmarks/context_block.py [--repeats N] [--no-memory] [--maps 32 64 128]
"""

import argparse
import ctypes
import gc
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from reference import networks as plain
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hamgan.nn.attention import SelfAttention
from hamgan.nn.hamburger import Hamburger, HamburgerConfig
from hamgan.nn.spectral_norm import SpectralNormConfig

MAPS = {32: (256, 32, 8), 64: (192, 24, 4), 128: (96, 16, 1)}
"""Side of the map, pixels: channels, rank, batch."""
EQUALITY = SpectralNormConfig()


def _plain_burger(side: int) -> nn.Module:
    channels, rank, _ = MAPS[side]
    return plain.Burger(channels, HamburgerConfig(rank=rank), EQUALITY, None)


def _our_burger(side: int) -> nn.Module:
    channels, rank, _ = MAPS[side]
    return Hamburger(channels, side, HamburgerConfig(rank=rank), spectral_norm=EQUALITY, norm=None)


BLOCKS: dict[str, Callable[[int], nn.Module]] = {
    "attention, plain products": lambda side: plain.Attention(MAPS[side][0], EQUALITY),
    "attention, scaled_dot_product_attention": lambda side: plain.FusedAttention(MAPS[side][0], EQUALITY),
    "attention, ours": lambda side: SelfAttention(MAPS[side][0], spectral_norm=EQUALITY),
    "attention, ours, bf16": lambda side: SelfAttention(MAPS[side][0], spectral_norm=EQUALITY),
    "Hamburger, as the paper's code": _plain_burger,
    "Hamburger, ours": _our_burger,
    "Hamburger, ours, bf16": _our_burger,
}


def passes(name: str, side: int) -> Callable[[], None]:
    """Return a forward and a backward pass of a block."""
    channels, _, batch = MAPS[side]
    torch.manual_seed(0)
    block, bf16 = BLOCKS[name](side), name.endswith("bf16")
    layout = torch.channels_last if "ours" in name else torch.contiguous_format
    block = block.to(memory_format=layout)
    nn.init.constant_(block.gate, 0.5)
    x = torch.randn(batch, channels, side, side).to(torch.bfloat16 if bf16 else torch.float32, memory_format=layout)
    gradient = torch.randn_like(x)

    def run() -> None:
        leaf = x.detach().requires_grad_(True)
        block.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            out: Tensor = block(leaf)
        out.backward(gradient)

    return run


def multiply_adds(name: str, side: int) -> float:
    """Count an image's forward pass."""
    channels, _, _ = MAPS[side]
    counted = "attention, plain products" if name.startswith("attention") else name
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        BLOCKS[counted](side)(torch.randn(1, channels, side, side))
    return counter.get_total_flops() / 2


def take_turns(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each, taken in turns after two rounds to warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[2:]) for name, values in times.items()}


def print_memory(name: str, side: int) -> None:
    """Print the memory, MB, that the passes add at the most in this process."""
    run = passes(name, side)
    run()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    held = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    run()
    run()
    print(f"memory {_status('VmHWM') - held:.1f}")


def _status(key: str) -> float:
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024 / 1e6


def memory_of(name: str, side: int) -> float:
    """Return `print_memory`'s figure from a process of its own."""
    command = [sys.executable, __file__, "--memory-of", name, "--maps", str(side)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "MALLOC_MMAP_THRESHOLD_": str(2**16)}
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return float(re.findall(r"^memory ([\d.-]+)$", out, re.MULTILINE)[0])


def print_map(side: int, *, repeats: int, memory: bool) -> None:
    """Measure the blocks on one map and print their table."""
    channels, rank, batch = MAPS[side]
    seconds = take_turns({name: passes(name, side) for name in BLOCKS}, repeats)
    print(f"\n### {side}x{side}, {channels} channels, rank {rank}, batch {batch}\n")
    print(
        "| block | ms | of plain attention | of the paper's | added memory, MB | of plain attention | GMAC an image |"
    )
    print("|---|---|---|---|---|---|---|")
    first, paper = seconds["attention, plain products"], seconds["Hamburger, as the paper's code"]
    most = memory_of("attention, plain products", side) if memory else 0.0
    for name, value in seconds.items():
        row = [name, f"{value * 1e3:.1f}", f"{value / first:.2f}", f"{value / paper:.2f}"]
        if memory:
            added = memory_of(name, side)
            row += [f"{added:.0f}", f"{added / most:.2f}"]
        else:
            row += ["", ""]
        print(f"| {' | '.join(row)} | {multiply_adds(name, side) / 1e9:.2f} |", flush=True)
    print(f"\nHamburger, bf16 over float32: {seconds['Hamburger, ours, bf16'] / seconds['Hamburger, ours']:.2f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--maps", nargs="*", type=int, default=list(MAPS), choices=list(MAPS))
    parser.add_argument("--memory-of", choices=list(BLOCKS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print_memory(options.memory_of, options.maps[0])
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians of {options.repeats}")
    for side in options.maps:
        print_map(side, repeats=options.repeats, memory=not options.no_memory)


if __name__ == "__main__":
    main()

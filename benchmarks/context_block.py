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
from collections.abc import Callable

import torch
from measure import memory_of, print_memory, take_turns
from reference import networks as plain
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hamgan.nn import kernel_library
from hamgan.nn.attention import SelfAttention
from hamgan.nn.hamburger import Hamburger, HamburgerConfig
from hamgan.nn.spectral_norm import SpectralNormConfig

MAPS = {32: (256, 32, 8), 64: (192, 24, 4), 128: (96, 16, 1)}
"""Side of the map, pixels: channels, rank, batch."""
QUICK = ["--repeats", "5"]
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
    with kernel_library.switched_off(), FlopCounterMode(display=False) as counter, torch.no_grad():
        BLOCKS[counted](side)(torch.randn(1, channels, side, side))
    return counter.get_total_flops() / 2


def added_memory(name: str, side: int) -> float:
    """Return the memory that a block's passes add, MB."""
    return memory_of(__file__, "--memory-of", name, "--maps", str(side))[0]


def print_map(side: int, *, repeats: int, memory: bool) -> None:
    """Measure the blocks on one map and print their table."""
    channels, rank, batch = MAPS[side]
    seconds = take_turns({name: passes(name, side) for name in BLOCKS}, repeats, warmup=2)
    print(f"\n### {side}x{side}, {channels} channels, rank {rank}, batch {batch}\n")
    print(
        "| block | ms | of plain attention | of the paper's | added memory, MB | of plain attention | GMAC an image |"
    )
    print("|---|---|---|---|---|---|---|")
    first, paper = seconds["attention, plain products"], seconds["Hamburger, as the paper's code"]
    most = added_memory("attention, plain products", side) if memory else 0.0
    for name, value in seconds.items():
        row = [name, f"{value * 1e3:.1f}", f"{value / first:.2f}", f"{value / paper:.2f}"]
        if memory:
            added = added_memory(name, side)
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
        print_memory(passes(options.memory_of, options.maps[0]))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians of {options.repeats}")
    for side in options.maps:
        print_map(side, repeats=options.repeats, memory=not options.no_memory)


if __name__ == "__main__":
    main()

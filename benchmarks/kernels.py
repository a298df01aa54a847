"""What do the compiled kernels save, each by itself and in a training step, against torch's operations for the same?

Forward and backward as training calls them, channels_last, on sizes of the networks at 128x128; both sides take turns in one
process, whose freed memory is kept, as in training. NMF's six steps also as GFLOP/s, beside those of a large matrix product.

Run: python benchmarks/kernels.py [--repeats N] [--no-steps]
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from measure import take_turns
from torch import Tensor
from train_step import build, matmul_peak

from hamgan.device import keep_memory
from hamgan.nn import kernel_library
from hamgan.nn.convolution import conv2d
from hamgan.nn.decomposition import NMF
from hamgan.nn.norm import BatchStatistics
from hamgan.nn.resample import add_upsampled, conv2d_downsample, relu_and_downsample, upsample_conv2d
from hamgan.nn.spectral_norm import SNConv2d, SpectralNormConfig

QUICK = ["--repeats", "9"]
STEPS = ("hamgan128", "emoji32")
LAST = torch.channels_last


def _map(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(dtype).to(memory_format=LAST).requires_grad_(True)


def _train(run: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], object]:
    """Return what takes a function's gradients."""
    with torch.no_grad():
        direction = torch.ones_like(run(*inputs))
    return lambda: torch.autograd.grad(run(*inputs), inputs, direction)


def spectral_norm(channels: int, dtype: torch.dtype) -> Callable[[], object]:
    """A 3x3 convolution's weight."""
    layer = SNConv2d(channels, channels, 3, spectral_norm=SpectralNormConfig()).to(memory_format=LAST)
    return _train(lambda weight: layer.spectral_norm(weight, dtype), layer.weight)


def batch_norm(channels: int, side: int, dtype: torch.dtype) -> Callable[[], object]:
    """A conditional norm and its ReLU, batch 8."""
    layer = BatchStatistics(channels, eps=1e-5, momentum=0.1, cross_replica=False)
    gain, bias = torch.randn(2, 8, channels).unbind()
    inputs = [_map(8, channels, side, side, dtype=dtype), gain.requires_grad_(True), bias.requires_grad_(True)]
    return _train(lambda x, gain, bias: layer(x, gain, bias, True), *inputs)


def shortcut_down(channels: int, side: int, dtype: torch.dtype) -> Callable[[], object]:
    """The ReLU and the pooled shortcut of a discriminator's block, batch 16."""
    x = _map(16, channels, side, side, dtype=dtype)
    directions = [torch.ones_like(part) for part in relu_and_downsample(x)]
    return lambda: torch.autograd.grad(relu_and_downsample(x), x, directions)


def shortcut_up(channels: int, side: int, dtype: torch.dtype) -> Callable[[], object]:
    """The upsampled shortcut of a generator's block, batch 8; with a copy of the map that it is added to."""
    h, low = (_map(8, channels, size, size, dtype=dtype) for size in (side, side // 2))
    return _train(lambda h, low: add_upsampled(h * 1, low), h, low)


def convolution(c_in: int, c_out: int, side: int, dtype: torch.dtype, size: int = 3) -> Callable[[], object]:
    """A convolution with bias and ReLU, batch 16; in float32 its products are torch's on both sides."""
    x, weight = _map(16, c_in, side, side, dtype=dtype), _map(c_out, c_in, size, size, dtype=dtype)
    return _train(partial(conv2d, padding=size // 2, relu=True), x, weight, torch.zeros(c_out, requires_grad=True))


def downsampling(channels: int, side: int, dtype: torch.dtype) -> Callable[[], object]:
    """The second convolution of a discriminator's block, with the first one's bias and ReLU, batch 16; products as above."""
    x, weight = _map(16, channels, side, side, dtype=dtype), _map(channels, channels, 3, 3, dtype=dtype)

    def run(x: Tensor, weight: Tensor, before: Tensor) -> Tensor:
        return conv2d_downsample(x, weight, None, before=before, relu=True)

    return _train(run, x, weight, torch.zeros(channels, requires_grad=True))


def upsampling(channels: int, side: int, dtype: torch.dtype) -> Callable[[], object]:
    """The first convolution of a generator's block, batch 8; products as above."""
    x, weight = _map(8, channels, side, side, dtype=dtype), _map(channels // 2, channels, 3, 3, dtype=dtype)
    return _train(upsample_conv2d, x, weight, torch.zeros(channels // 2, requires_grad=True))


def nmf(dim: int, rank: int, dtype: torch.dtype) -> Callable[[], object]:
    """Six steps and the one-step gradient, 8 maps of 32x32."""
    ham = NMF(dim, rank)
    x = torch.rand(8, 1024, dim).to(dtype).transpose(1, 2).requires_grad_(True)
    return _train(partial(ham, bases=torch.rand(8, dim, rank)), x)


def _step_flops(dim: int, rank: int, steps: int) -> float:
    """Return the operations of NMF's steps: of a step two products of the map and two of the codes."""
    return 2 * 8 * 1024 * rank * (2 * dim + 2 * rank) * steps


PARTS: dict[str, Callable[[torch.dtype], Callable[[], object]]] = {
    "spectral norm, 16 to 16 channels": partial(spectral_norm, 16),
    "spectral norm, 256 to 256": partial(spectral_norm, 256),
    "conditional norm and ReLU, 16 channels, 128x128": partial(batch_norm, 16, 128),
    "conditional norm and ReLU, 256 channels, 8x8": partial(batch_norm, 256, 8),
    "ReLU and pooled shortcut, 16 channels, 64x64": partial(shortcut_down, 16, 64),
    "upsampled shortcut, 16 channels, 128x128": partial(shortcut_up, 16, 128),
    "1x1 convolution, bias and ReLU, 16 channels, 128x128": partial(convolution, 16, 16, 128, size=1),
    "3x3 convolution, 16 channels, 128x128": partial(convolution, 16, 16, 128),
    "3x3 convolution, 256 channels, 8x8": partial(convolution, 256, 256, 8),
    "3x3 convolution, 16 to 3 channels, 128x128": partial(convolution, 16, 3, 128),
    "downsampling convolution, 16 channels, 128x128": partial(downsampling, 16, 128),
    "downsampling convolution, 128 channels, 16x16": partial(downsampling, 128, 16),
    "upsampling convolution, 32 to 16 channels, 64x64": partial(upsampling, 32, 64),
    "upsampling convolution, 256 to 128 channels, 8x8": partial(upsampling, 256, 8),
    "NMF, 64 channels, rank 32": partial(nmf, 64, 32),
    "NMF, 256 channels, rank 32": partial(nmf, 256, 32),
}


def _print_row(name: str, dtype: str, work: Callable[[], object], repeats: int) -> None:
    def without() -> None:
        with kernel_library.switched_off():
            work()

    kernels, plain = take_turns({"kernels": work, "torch": without}, repeats, warmup=2).values()
    print(f"| {name} | {dtype} | {plain * 1e3:.2f} | {kernels * 1e3:.2f} | {plain / kernels:.2f} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--no-steps", action="store_true", help="the parts alone")
    options = parser.parse_args()
    keep_memory(torch.device("cpu"))
    instructions = kernel_library.instructions()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, kernels {instructions}; medians of {options.repeats}"
    )
    if instructions == "none":
        print("hamgan was installed without a C compiler, or this processor has no AVX2: there is nothing to compare")
        return
    print("\n| what, forward and backward | dtype | torch, ms | kernels, ms | ratio |\n|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        for name, make in PARTS.items():
            _print_row(name, str(dtype).removeprefix("torch."), make(dtype), options.repeats)
    if not options.no_steps:
        for case in STEPS:
            for precision in ("fp32", "bf16"):
                _print_row(
                    f"a training step of {case}", precision, build(case, precision), max(options.repeats // 2, 5)
                )
    ham, x, bases = NMF(256, 32), torch.rand(8, 1024, 256).transpose(1, 2), torch.rand(8, 256, 32)
    with torch.no_grad():
        (seconds,) = take_turns({"nmf": lambda: ham._find(x, bases)}, 25).values()
    rate, peak = _step_flops(256, 32, ham.train_steps) / seconds / 1e9, matmul_peak(torch.float32) / 1e9
    print(
        f"\nNMF's six steps of 256 channels in float32: {rate:.0f} GFLOP/s, {rate / peak:.2f} of a product of 2048 by torch"
    )


if __name__ == "__main__":
    main()

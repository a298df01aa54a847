"""Is a convolution of stride 2 and sums over windows faster than resampling and a convolution, and from which size on?

Forward and backward, channels_last, both sides in one run; a ratio above 1 means that the fused form wins. That it is always
taken (`hamgan/nn/resample.py`) was read off this table.

Run: python benchmarks/resample.py
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from measure import take_turns
from torch import Tensor

from hamgan.nn.resample import conv2d_downsample, upsample_conv2d

REPEATS = 7
SIZES = [(8, 256, 256, 4), (32, 128, 64, 8), (32, 64, 32, 16), (8, 128, 64, 32), (2, 64, 32, 64), (8, 16, 16, 64)]
"""Batch, channels in and out, side of the low-resolution map."""


def forward_and_backward(run: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> None:
    """Take the gradients of both."""
    x.grad = weight.grad = None
    out = run(x, weight.to(x.dtype))
    out.backward(torch.ones_like(out))


def fused_up(x: Tensor, weight: Tensor) -> Tensor:
    """The transposed convolution, then sums."""
    return upsample_conv2d(x, weight, None)


def plain_up(x: Tensor, weight: Tensor) -> Tensor:
    """Nearest upsampling, then the convolution."""
    return F.conv2d(F.interpolate(x, scale_factor=2.0), weight, padding=1)


def fused_down(x: Tensor, weight: Tensor) -> Tensor:
    """Sums, then the convolution of stride 2."""
    return conv2d_downsample(x, weight, None)


def plain_down(x: Tensor, weight: Tensor) -> Tensor:
    """The convolution, then average pooling."""
    return F.avg_pool2d(F.conv2d(x, weight, padding=1), 2)


def main() -> None:
    """Print the table."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians of {REPEATS}")
    print(
        f"{'':6} {'batch':>5} {'c_in':>5} {'c_out':>5} {'low':>4} {'dtype':>9} {'plain ms':>9} {'fused ms':>9} {'ratio':>6}"
    )
    for batch, c_in, c_out, side in SIZES:
        for dtype in (torch.float32, torch.bfloat16):
            for name, plain, fused, size in (
                ("up", plain_up, fused_up, side),
                ("down", plain_down, fused_down, 2 * side),
            ):
                x = torch.randn(batch, c_in, size, size).contiguous(memory_format=torch.channels_last)
                x = x.to(dtype).requires_grad_(True)
                weight = torch.randn(c_out, c_in, 3, 3, requires_grad=True)
                sides = {"plain": plain, "fused": fused}
                calls = {side: partial(forward_and_backward, run, x, weight) for side, run in sides.items()}
                slow, fast = take_turns(calls, REPEATS).values()
                kind = str(dtype).removeprefix("torch.")
                row = f"{name:6} {batch:5} {c_in:5} {c_out:5} {side:4} {kind:>9} {slow * 1e3:9.1f} {fast * 1e3:9.1f}"
                print(f"{row} {slow / fast:6.2f}")


if __name__ == "__main__":
    main()

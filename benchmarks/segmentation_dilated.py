"""Is a dilated depthwise convolution faster as an undilated one on every third pixel, forward and in training?

Both sides in one run, on the maps of VAN-Small at 512x512 and of a training batch of the demo; a ratio above 1 means that
`DilatedDepthwiseConv` beats the library's kernel. `error` is the largest difference over the largest value.

Run: python benchmarks/segmentation_dilated.py
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hamgan.segmentation.layers import DilatedDepthwiseConv

REPEATS = 11
SHAPES = [(1, 64, 128), (1, 128, 64), (1, 320, 32), (1, 512, 16), (16, 32, 24), (16, 128, 6)]
"""Batch, channels, side."""


def milliseconds(run: Callable[[], object]) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:]) * 1e3


def forward_and_backward(conv: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Take the gradients of everything."""
    y = conv(x)
    y.backward(torch.ones_like(y))


def main() -> None:
    """Print the table."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, 7x7 dilated by 3; medians of {REPEATS}, ms")
    print(
        f"{'batch x C x side':>18} {'format':>13} {'dtype':>8} {'library':>8} {'ours':>8} {'ratio':>6}"
        f" {'lib. f+b':>9} {'ours f+b':>9} {'ratio':>6} {'error':>8}"
    )
    for batch, channels, side in SHAPES:
        for name, memory_format in (("NCHW", torch.contiguous_format), ("channels_last", torch.channels_last)):
            for dtype in (torch.float32, torch.bfloat16):
                conv = DilatedDepthwiseConv(channels, 7, dilation=3).to(dtype)
                x = torch.randn(batch, channels, side, side, dtype=dtype).contiguous(memory_format=memory_format)
                x.requires_grad_(True)

                def library(x: Tensor, conv: nn.Conv2d = conv) -> Tensor:
                    return nn.Conv2d.forward(conv, x)

                times = []
                with torch.inference_mode():
                    expected = library(x)
                    error = float((conv(x) - expected).abs().max() / expected.abs().max())
                    times += [milliseconds(lambda run=run, x=x: run(x)) for run in (library, conv)]
                times += [milliseconds(lambda run=run, x=x: forward_and_backward(run, x)) for run in (library, conv)]
                a, b, c, d = times
                size, kind = f"{batch}x{channels}x{side}", str(dtype).removeprefix("torch.")
                print(
                    f"{size:>18} {name:>13} {kind:>8} {a:8.2f} {b:8.2f} {a / b:6.1f} {c:9.2f} {d:9.2f} {c / d:6.1f}"
                    f" {error:8.1e}"
                )


if __name__ == "__main__":
    main()

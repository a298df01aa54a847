"""Is a dilated depthwise convolution faster as an undilated one on every third pixel, forward and in training?

Both sides in one run, on the maps of VAN-Small at 512x512 and of a training batch of the demo; a ratio above 1 means that
`DilatedDepthwiseConv` beats the library's kernel. `error` is the largest difference over the largest value.

Run: python benchmarks/segmentation_dilated.py
"""

from collections.abc import Callable
from functools import partial

import torch
from measure import take_turns
from torch import Tensor, nn

from hamgan.segmentation.layers import DilatedDepthwiseConv

REPEATS = 11
SHAPES = [(1, 64, 128), (1, 128, 64), (1, 320, 32), (1, 512, 16), (16, 32, 24), (16, 128, 6)]
"""Batch, channels, side."""


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
        for layout, memory_format in (("NCHW", torch.contiguous_format), ("channels_last", torch.channels_last)):
            for dtype in (torch.float32, torch.bfloat16):
                conv = DilatedDepthwiseConv(channels, 7, dilation=3).to(dtype)
                x = torch.randn(batch, channels, side, side, dtype=dtype).contiguous(memory_format=memory_format)
                x.requires_grad_(True)

                def library(x: Tensor, conv: nn.Conv2d = conv) -> Tensor:
                    return nn.Conv2d.forward(conv, x)

                sides = {"library": library, "ours": conv}
                with torch.inference_mode():
                    expected = library(x)
                    error = float((conv(x) - expected).abs().max() / expected.abs().max())
                    forward = take_turns({name: partial(run, x) for name, run in sides.items()}, REPEATS, warmup=2)
                training = {name: partial(forward_and_backward, run, x) for name, run in sides.items()}
                times = [*forward.values(), *take_turns(training, REPEATS, warmup=2).values()]
                a, b, c, d = (value * 1e3 for value in times)
                size, kind = f"{batch}x{channels}x{side}", str(dtype).removeprefix("torch.")
                print(
                    f"{size:>18} {layout:>13} {kind:>8} {a:8.2f} {b:8.2f} {a / b:6.1f} {c:9.2f} {d:9.2f} {c / d:6.1f}"
                    f" {error:8.1e}"
                )


if __name__ == "__main__":
    main()

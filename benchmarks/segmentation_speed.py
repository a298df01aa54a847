"""How fast is Light-Ham VAN-Small at 512x512 in evaluation, and is bfloat16's error what rounding explains?

Four sides, interleaved in one run: NCHW float32 with the dilated convolutions left to the library, as the public code has
them; NCHW float32 as built here; and `prepare_for_inference` in float32 and in bfloat16 (channels_last).

The error: logits of each side against the same network in float64. What bfloat16 explains is the error of the float64 network
when nothing but the convolutions' weights and every layer's output are rounded to bfloat16, its arithmetic staying exact. The
Hamburger's steps are float32 in both. The network is random, but with layer scales of 0.3 (at the initial 0.01 most of it
would not matter) and batch norms that have seen data.

Run: python benchmarks/segmentation_speed.py
"""

import copy
from collections.abc import Callable

import torch
from measure import take_turns
from torch import Tensor, nn

from hamgan.nn.decomposition import MatrixDecomposition
from hamgan.segmentation.inference import prepare_for_inference
from hamgan.segmentation.layers import BatchNorm, DilatedDepthwiseConv
from hamgan.segmentation.model import SegmentationConfig, Segmentor
from hamgan.segmentation.van import VANBlock

REPEATS = 9
SIZE = 512
CPU = torch.device("cpu")


class LibraryDilatedConv(DilatedDepthwiseConv):
    """The dilated convolution as the library computes it."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> same shape."""
        return nn.Conv2d.forward(self, x)


def lively_segmentor() -> Segmentor:
    """Build a random VAN-Small whose every layer matters and whose batch norms have seen data."""
    torch.manual_seed(0)
    model = Segmentor(SegmentationConfig(drop_path=0.0)).train()
    for module in model.modules():
        if isinstance(module, VANBlock):
            nn.init.constant_(module.scale1, 0.3)
            nn.init.constant_(module.scale2, 0.3)
        elif isinstance(module, BatchNorm):
            module.momentum = 0.5
    nn.init.normal_(model.head.classify.weight, std=0.1)
    with torch.no_grad():
        for _ in range(6):
            model.features(torch.randn(4, 3, 128, 128))
    return model.eval().requires_grad_(False)


def rounded_to_bf16(model: Segmentor) -> Segmentor:
    """Return the network in float64 with convolutions' weights and all layers' outputs rounded to bfloat16."""
    rounded = copy.deepcopy(model).double()

    def round_output(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.bfloat16().double()

    for module in rounded.modules():
        if isinstance(module, nn.Conv2d):
            for parameter in module.parameters():
                parameter.copy_(parameter.bfloat16())
        is_layer = isinstance(module, MatrixDecomposition | VANBlock) or not list(module.children())
        if is_layer and not isinstance(module, nn.Identity):
            module.register_forward_hook(round_output)
    return rounded


def relative_rms(ours: Tensor, exact: Tensor) -> float:
    """Return the root mean square difference over the exact logits' deviation from their mean."""
    return float((ours.double() - exact).square().mean().sqrt() / exact.std())


@torch.inference_mode()
def main() -> None:
    """Print the tables."""
    model = lively_segmentor()
    library = copy.deepcopy(model)
    for module in library.modules():
        if isinstance(module, DilatedDepthwiseConv):
            module.__class__ = LibraryDilatedConv
    float32 = prepare_for_inference(model, CPU)
    bfloat16 = prepare_for_inference(model, CPU, "bf16")
    images = torch.randn(1, 3, SIZE, SIZE)

    def in_bf16() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return bfloat16(images)

    sides: dict[str, Callable[[], Tensor]] = {
        "NCHW float32, library's dilated convolutions": lambda: library(images),
        "NCHW float32": lambda: model(images),
        "channels_last float32": lambda: float32(images),
        "channels_last bfloat16": in_bf16,
    }
    seconds = take_turns(sides, REPEATS, warmup=2)
    exact = copy.deepcopy(model).double()(images.double())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, 1x3x{SIZE}x{SIZE}, medians of {REPEATS}")
    print(f"{'':46} {'ms':>7} {'speed':>6} {'relative error':>15}")
    for name, run in sides.items():
        ratio = seconds["NCHW float32"] / seconds[name]
        print(f"{name:46} {seconds[name] * 1e3:7.1f} {ratio:6.2f} {relative_rms(run(), exact):15.2e}")
    explained = relative_rms(rounded_to_bf16(model)(images.double()), exact)
    measured = relative_rms(in_bf16(), exact)
    print(f"error of rounding weights and layers' outputs to bfloat16 in float64: {explained:.2e}")
    print(f"bfloat16's error over it: {measured / explained:.2f}")
    agree = (in_bf16().argmax(1) == exact.argmax(1)).double().mean()
    print(f"pixels of the same class as in float64: {float(agree):.4f}")


if __name__ == "__main__":
    main()

"""A segmentor made ready for testing: norms folded into convolutions, memory layout and precision of the weights."""

import copy
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamgan.segmentation.hamburger import Hamburger
from hamgan.segmentation.heads import MultiLevelInput
from hamgan.segmentation.layers import BatchNorm, ConvNormReLU
from hamgan.segmentation.model import Segmentor
from hamgan.segmentation.resnet import Bottleneck
from hamgan.segmentation.van import ConvMLP, VANBlock, VANStage

BAND_BYTES = 1 << 22
"""Largest hidden map of a band of rows: measured, half or double is as fast."""


def prepare_for_inference(
    model: Segmentor, device: torch.device, precision: Literal["fp32", "bf16"] = "fp32"
) -> Segmentor:
    """Return a copy of a segmentor that answers fast: frozen, in evaluation mode, the same function but for rounding.

    Batch norms and layer scales are folded into the convolutions beside them. Maps are channels_last, which is what the
    stages' layer norms leave behind and what depthwise and bfloat16 convolutions are fastest in. In bf16 the convolutions'
    weights are rounded once, rather than at each call; the other norms keep float32 weights, and the Hamburger's steps are
    float32 whatever the precision.

    Args:
        model: The segmentor; it is left as it is.
        device: Where the copy computes.
        precision: bf16 must be called under bfloat16 autocast, as `hamgan.device.resolve_autocast` gives it.
    """
    ready = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(ready.modules()):
        _fold_norms(module)
    if isinstance(ready.gather, MultiLevelInput):
        squeeze = ready.head.squeeze.conv
        assert isinstance(squeeze, nn.Conv2d)
        ready.gather = SqueezedLevels(ready.gather, squeeze, ready.backbone.dims)
        ready.head.squeeze.conv = nn.Identity()
    ready = ready.to(device).to(memory_format=torch.channels_last)
    if precision == "bf16":
        for module in ready.modules():
            if isinstance(module, nn.Conv2d):
                module.to(torch.bfloat16)
    return ready


class FoldedVANBlock(nn.Module):
    """A VAN block whose norms and layer scales lie in its convolutions.

    With norm1(x) = gain x + offset, scale1 * (norm1(x) + branch(norm1(x))) is x times scale1 * gain and a branch whose first
    and last maps absorb the rest; the factor is added to x, not to 1, where bfloat16 would lose it.

    Args:
        block: The block; its convolutions are taken over and changed.
    """

    shortcut: Tensor

    def __init__(self, block: VANBlock) -> None:
        super().__init__()
        self.attention = block.attention
        self.mlp = block.mlp
        gain, offset = _affine(block.norm1)
        scale = block.scale1.double()
        _scale_input(self.attention.proj_in, gain, offset)
        _scale_output(self.attention.proj_out, scale, scale * offset)
        self.register_buffer("shortcut", (scale * gain).float())
        _scale_input(self.mlp.fc1, *_affine(block.norm2))
        scale = block.scale2.double()
        _scale_output(self.mlp.fc2, scale, torch.zeros_like(scale))

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> same shape."""
        x = x + torch.addcmul(self.attention.branch(x), x, self.shortcut.to(x.dtype)[:, None, None])
        return x + _in_bands(self.mlp, x)


def _in_bands(mlp: ConvMLP, x: Tensor) -> Tensor:
    """Pass (B, dim, H, W) through an MLP, on a CPU in bands of rows whose hidden map stays in the cache; same shape.

    A band reads a row more on either side, for the 3x3 convolution; what its zero padding makes of those is left out.
    """
    height, width = x.shape[2:]
    row_bytes = x.shape[0] * mlp.fc1.out_channels * width * x.element_size()
    rows = max(BAND_BYTES // row_bytes, 1)
    if x.device.type != "cpu" or rows >= height:
        return mlp(x)
    bands = []
    for top in range(0, height, rows):
        first, last = max(top - 1, 0), min(top + rows + 1, height)
        hidden = mlp.depthwise(mlp.fc1(x[:, :, first:last]))
        bands.append(mlp.fc2(F.gelu(hidden[:, :, top - first : top - first + rows])))
    return torch.cat(bands, 2)


class SqueezedLevels(nn.Module):
    """Light-Ham's input after the squeeze's convolution: a pointwise map commutes with bilinear resizing, so that stages 3
    and 4 are squeezed at their own resolution, a quarter and a sixteenth of the products.

    Args:
        gather: What the head's input is made by.
        squeeze: The convolution on it.
        dims: Channels of the four stages.
    """

    def __init__(self, gather: MultiLevelInput, squeeze: nn.Conv2d, dims: Sequence[int]) -> None:
        super().__init__()
        self.resize = gather.resize
        self.squeeze = nn.ModuleList()
        for weight in squeeze.weight.split(list(dims[1:]), dim=1):
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False)
            conv.weight = nn.Parameter(weight.clone(), requires_grad=False)
            self.squeeze.append(conv)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps (B, C_s, H_s, W_s) -> (B, D, H_2, W_2)."""
        size = maps[1].shape[2:]
        squeezed = [self.resize(conv(x), size) for conv, x in zip(self.squeeze, maps[1:], strict=True)]
        return squeezed[0] + squeezed[1] + squeezed[2]


def _fold_norms(module: nn.Module) -> None:
    """Fold the batch norms that a module holds, in place."""
    if isinstance(module, VANStage):
        module.embed_norm = _folded(module.embed, module.embed_norm)
        module.blocks = nn.ModuleList(FoldedVANBlock(block) for block in module.blocks if isinstance(block, VANBlock))
    elif isinstance(module, Bottleneck):
        module.bn1 = _folded(module.conv1, module.bn1)
        module.bn2 = _folded(module.conv2, module.bn2)
        module.bn3 = _folded(module.conv3, module.bn3)
        if isinstance(module.downsample, nn.Sequential):
            module.downsample[1] = _folded(module.downsample[0], module.downsample[1])
    elif isinstance(module, ConvNormReLU):
        module.norm = _folded(module.conv, module.norm)
    elif isinstance(module, Hamburger) and module.upper_bread_norm is not None:
        module.upper_bread_norm = _folded(module.upper_bread, module.upper_bread_norm)


def _folded(conv: nn.Module, norm: nn.Module) -> nn.Module:
    """Fold a batch norm into the convolution before it and return what takes its place; leave other norms alone."""
    if not isinstance(norm, BatchNorm):
        return norm
    assert isinstance(conv, nn.Conv2d)
    _scale_output(conv, *_affine(norm))
    return nn.Identity()


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return a batch norm in evaluation as gain and offset, (C,), float64."""
    assert isinstance(norm, BatchNorm)
    gain = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    return gain, norm.bias.double() - norm.running_mean.double() * gain


def _scale_input(conv: nn.Conv2d, gain: Tensor, offset: Tensor) -> None:
    """Let a pointwise map take x for gain * x + offset."""
    weight = conv.weight.double()
    assert conv.bias is not None
    conv.bias.copy_(conv.bias.double() + weight[:, :, 0, 0] @ offset)
    conv.weight.copy_(weight * gain[:, None, None])


def _scale_output(conv: nn.Conv2d, gain: Tensor, offset: Tensor) -> None:
    """Let a convolution put out gain * y + offset for y."""
    bias = offset if conv.bias is None else conv.bias.double() * gain + offset
    conv.weight.copy_(conv.weight.double() * gain[:, None, None, None])
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)

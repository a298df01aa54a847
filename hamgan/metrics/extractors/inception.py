"""The Inception network of FID and Inception Score, and the three input pipelines in use for it."""

import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models import inception as tv

from hamgan.metrics.extractors.weights import cache_folder, download

WEIGHTS_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
)
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
WEIGHTS_VARIABLE = "HAMGAN_INCEPTION_WEIGHTS"
_SIDE = 299  # pixels
_TRUNK = (
    *(
        "Conv2d_1a_3x3",
        "Conv2d_2a_3x3",
        "Conv2d_2b_3x3",
        "maxpool1",
        "Conv2d_3b_1x1",
        "Conv2d_4a_3x3",
        "maxpool2",
    ),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d"),
    *("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c", "avgpool"),
)


class InceptionFID(tv.Inception3):
    """The TensorFlow Inception graph of 2015-12-05, with the names of pytorch-fid's checkpoint.

    It differs from torchvision's network in its pooling branches: TensorFlow's average does not count the
    padding, and the last block takes a maximum instead (an oddity of that graph which every FID contains).

    Source: Szegedy et al. 2016; the graph of Salimans et al. 2016 (IS) and Heusel et al. 2017 (FID).
    """

    dim = 2048
    num_classes = 1008

    def __init__(self) -> None:
        super().__init__(num_classes=self.num_classes, aux_logits=False, init_weights=False)
        self.Mixed_5b = _BlockA(192, pool_features=32)
        self.Mixed_5c = _BlockA(256, pool_features=64)
        self.Mixed_5d = _BlockA(288, pool_features=64)
        self.Mixed_6b = _BlockC(768, channels_7x7=128)
        self.Mixed_6c = _BlockC(768, channels_7x7=160)
        self.Mixed_6d = _BlockC(768, channels_7x7=160)
        self.Mixed_6e = _BlockC(768, channels_7x7=192)
        self.Mixed_7b = _BlockE(1280)
        self.Mixed_7c = _BlockEMax(2048)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute pool3 features and logits in one pass.

        Args:
            x: (B, 3, 299, 299), about -1..1.

        Returns:
            pool3, (B, 2048), non-negative, and logits, (B, 1008), without the bias: so the score takes them.
        """
        for name in _TRUNK:
            x = getattr(self, name)(x)
        pool = x.flatten(1)
        return pool, pool.mm(self.fc.weight.T)


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)


class _BlockA(tv.InceptionA):
    def _forward(self, x: Tensor) -> list[Tensor]:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return [self.branch1x1(x), five, three, self.branch_pool(_average(x))]


class _BlockC(tv.InceptionC):
    def _forward(self, x: Tensor) -> list[Tensor]:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return [self.branch1x1(x), single, double, self.branch_pool(_average(x))]


class _BlockE(tv.InceptionE):
    def _pool(self, x: Tensor) -> Tensor:
        return _average(x)

    def _forward(self, x: Tensor) -> list[Tensor]:
        single = self.branch3x3_1(x)
        single = torch.cat([self.branch3x3_2a(single), self.branch3x3_2b(single)], 1)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        double = torch.cat([self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)], 1)
        return [self.branch1x1(x), single, double, self.branch_pool(self._pool(x))]


class _BlockEMax(_BlockE):
    def _pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, kernel_size=3, stride=1, padding=1)


def preprocess_pytorch_fid(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to (B, 3, 299, 299) in -1..1, by half-pixel bilinear without antialiasing."""
    x = images.float() / 255
    x = F.interpolate(x, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
    return 2 * x - 1


def preprocess_tf1(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to (B, 3, 299, 299) in -1..127/128, by TensorFlow 1's bilinear resize.

    Its source coordinate is dst * in / out, without the half-pixel offset: the picture moves up and left.
    """
    x = images.float()
    x = _legacy_bilinear(x, _SIDE, dim=3)
    x = _legacy_bilinear(x, _SIDE, dim=2)
    return (x - 128) / 128


def _legacy_bilinear(x: Tensor, size: int, dim: int) -> Tensor:
    # Columns, then rows, with a + (b - a) * t: the order of TensorFlow's kernel, bit for bit.
    length = x.shape[dim]
    position = torch.arange(size, dtype=torch.float32, device=x.device)
    position = position * torch.tensor(length / size, dtype=torch.float32)
    low = position.long()
    high = (low + 1).clamp_max(length - 1)
    weight = position - low.float()
    weight = weight if dim == 3 else weight[:, None]
    first = x.index_select(dim, low)
    return first + (x.index_select(dim, high) - first) * weight


def preprocess_clean(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to (B, 3, 299, 299) in -1..127/128, by Pillow's antialiased bicubic in float.

    Source: Parmar et al. 2022 (clean-fid).
    """
    planes = images.flatten(0, 1).cpu().numpy().astype(np.float32)
    size = (_SIDE, _SIDE)
    resized = [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in planes]
    x = torch.from_numpy(np.stack(resized)).clamp_(0, 255).view(-1, 3, _SIDE, _SIDE)
    return (x.to(images.device) - 128) / 128


PREPROCESS = {"pytorch-fid": preprocess_pytorch_fid, "tf1": preprocess_tf1, "clean": preprocess_clean}


def weights_path() -> Path:
    """Find the weights: $HAMGAN_INCEPTION_WEIGHTS, torch hub's cache, our cache, or the network.

    Raises:
        ValueError: If the variable names no file, or the download fails.
    """
    if given := os.environ.get(WEIGHTS_VARIABLE):
        if not Path(given).is_file():
            raise ValueError(f"{WEIGHTS_VARIABLE} = {given}: no such file")
        return Path(given)
    name = WEIGHTS_URL.rpartition("/")[2]
    hub = Path(torch.hub.get_dir(), "checkpoints", name)  # where pytorch-fid has left it
    if hub.is_file():
        return hub
    try:
        return download(WEIGHTS_URL, cache_folder() / name, WEIGHTS_SHA256)
    except ValueError as error:
        raise ValueError(f"{error} as {WEIGHTS_VARIABLE}") from None


def network() -> nn.Module:
    """Build the network without weights, on the meta device."""
    with torch.device("meta"):
        return InceptionFID()

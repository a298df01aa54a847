"""One interface to every feature network: uint8 NCHW images in, float32 features out."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from operator import attrgetter

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Features:
    """What an extractor says of a batch of B images.

    Attributes:
        pool: Pooled features, (B, d), float32, unbounded.
        logits: Class scores before softmax, (B, K), float32; None when the network has no classifier.
            Inception's are without the bias, as the Inception Score has always used them.
    """

    pool: Tensor
    logits: Tensor | None


class Extractor:
    """A frozen feature network with its own input pipeline, run in exact float32.

    The pipeline (resize, range) belongs to the protocol: the same weights behind another resize give other
    numbers. Hence two extractors are comparable only if name, protocol and weights agree; `identity` says so.

    Args:
        name: Extractor, as it appears in a metric's name: "inception", "efficientnet_lite0", ...
        protocol: Input pipeline: "pytorch-fid", "tf1", "clean", "bicubic224", ...
        dim: Width d of the pooled features.
        num_classes: Width K of the logits; None without a classifier.
        weights_sha256: Hex digest of the weight file.
        preprocess: uint8 (B, 3, H, W) to the network's float32 input.
        network: Module giving (pool, logits or None).
        cpu_batch: Images that pass at once on a CPU, where a batch that leaves the cache only costs time.
    """

    def __init__(
        self,
        *,
        name: str,
        protocol: str,
        dim: int,
        num_classes: int | None,
        weights_sha256: str,
        preprocess: Callable[[Tensor], Tensor],
        network: nn.Module,
        cpu_batch: int = 4,
    ) -> None:
        self.name = name
        self.protocol = protocol
        self.dim = dim
        self.num_classes = num_classes
        self.weights_sha256 = weights_sha256
        self.preprocess = preprocess
        self.cpu_batch = cpu_batch
        self.network = network.float().eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the network's parameters live."""
        return next(self.network.parameters()).device

    @property
    def identity(self) -> dict[str, str]:
        """Everything that decides whether two sets of features may be compared."""
        return {"extractor": self.name, "protocol": self.protocol, "weights_sha256": self.weights_sha256}

    def to(self, device: torch.device | str) -> "Extractor":
        """Move the network to a device; return self."""
        self.network.to(device)
        return self

    def __call__(self, images: Tensor) -> Features:
        """Extract features.

        Args:
            images: uint8 RGB, (B, 3, H, W), 0..255, on any device.

        Returns:
            Features on the network's device.

        Raises:
            ValueError: If the images are not uint8 (B, 3, H, W), or the network answers NaN or infinity.
        """
        check_images(images)
        images = images.to(self.device)
        with exact_float32(images.device):
            answers = self._on_cpu(images) if images.device.type == "cpu" else [self._see(images)]
        pool = torch.cat([pool for pool, _ in answers])[: len(images)]
        scores = [scores for _, scores in answers if scores is not None]
        logits = torch.cat(scores)[: len(images)] if scores else None
        # One bad value here would later hang or poison every distance: find it while the batch is known.
        if not bool(torch.isfinite(pool).all()):
            raise ValueError(f"{self.name}: the features contain NaN or infinity; are the weights damaged?")
        return Features(pool, logits)

    def _see(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            answer: tuple[Tensor, Tensor | None] = self.network(self.preprocess(images))
        return answer

    def _on_cpu(self, images: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        # Several small batches side by side, each on one thread, rather than several threads within each operation:
        # on a busy machine those wait for each other a hundred times an image. And since kernels may sum in another
        # order for other sizes and numbers of threads, all batches are of one size, the last one filled up: an image's
        # features are then the same to the last bit in any company and on any number of cores.
        missing = -len(images) % self.cpu_batch
        images = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing else images
        parts, threads = images.split(self.cpu_batch), torch.get_num_threads()
        if threads == 1 or len(parts) == 1:
            with _threads(1):
                return [self._see(part) for part in parts]
        with _threads(1):
            return list(_workers(threads, os.getpid()).map(self._see, parts))


def check_images(images: Tensor) -> None:
    """Refuse anything but uint8 RGB batches.

    Args:
        images: What should be uint8 (B, 3, H, W).

    Raises:
        ValueError: If dtype, number of dimensions, channels or size are otherwise.
    """
    if not isinstance(images, Tensor):
        raise ValueError(f"images: expected a uint8 tensor (B, 3, H, W), got {type(images).__name__}")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images: expected the shape (B, 3, H, W), got {tuple(images.shape)}")
    if images.dtype != torch.uint8:
        hint = ""
        if images.is_floating_point():
            hint = "; quantise [-1, 1] with (127.5 * x + 128).floor().clamp(0, 255).to(torch.uint8)"
        raise ValueError(f"images: expected dtype uint8, got {images.dtype}{hint}")
    if images.shape[0] == 0 or images.shape[2] == 0 or images.shape[3] == 0:
        raise ValueError(f"images: the batch is empty, shape {tuple(images.shape)}")


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Switch autocast and every reduced float32 precision (TF32, bfloat16 passes) off; restore them after.

    TF32 moves FID in the third digit without a warning: the caller's settings must not reach a metric.

    Args:
        device: Where the computation runs.
    """
    with torch.autocast(device.type, enabled=False), _full_precision(), _deterministic_cudnn():
        yield


@cache
def _workers(count: int, process: int) -> ThreadPoolExecutor:
    # Kept from call to call: a new thread begins with an empty heap, and filling it costs a tenth of the whole pass in
    # page faults. A forked process has none of its parent's threads, hence the second key.
    return ThreadPoolExecutor(count, thread_name_prefix=f"extractor-{process}")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _deterministic_cudnn() -> Iterator[None]:
    # Autotuning picks kernels by timing: the same image would get other last digits on another day.
    cudnn = torch.backends.cudnn
    before = (cudnn.benchmark, cudnn.deterministic)
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


@contextmanager
def _full_precision() -> Iterator[None]:
    # torch has two sets of switches and raises when both were used. Reading the old ones tells which set the
    # program uses; we then answer in the same set and leave no mixture behind.
    backends = torch.backends
    try:
        before = (torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32)
    except RuntimeError:
        names = ("cuda.matmul", "cudnn.conv", "mkldnn.matmul", "mkldnn.conv")
        knobs = [attrgetter(name)(backends) for name in names]
        old = [knob.fp32_precision for knob in knobs]
        for knob in knobs:
            knob.fp32_precision = "ieee"
        try:
            yield
        finally:
            for knob, value in zip(knobs, old):
                knob.fp32_precision = value
        return
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        backends.cudnn.allow_tf32 = before[1]

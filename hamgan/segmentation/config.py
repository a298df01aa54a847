"""The configuration of a segmentation run: one section a component, read from a preset and the command line."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hamgan import config as configuration
from hamgan.segmentation.augment import AugmentConfig
from hamgan.segmentation.evaluate import TestConfig
from hamgan.segmentation.model import SegmentationConfig
from hamgan.segmentation.open_data import DataConfig
from hamgan.segmentation.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What a run writes, and how often."""

    stats_every: int = 50
    """Steps between rows of statistics."""
    checkpoint_every: int = 4000
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept."""
    test_every: int = 16000
    """Steps between tests; 0: none but the last."""
    test_images: int = 0
    """Images of these tests and of the last one; 0: all."""
    picture_images: int = 6
    """Images whose predictions are drawn beside their labels after each test."""

    def __post_init__(self) -> None:
        for name in ("stats_every", "checkpoint_every", "keep_checkpoints", "picture_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"log.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("test_every", "test_images"):
            if getattr(self, name) < 0:
                raise ValueError(f"log.{name} is {getattr(self, name)}; it must be at least 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that a run depends on."""

    steps: int = 160_000
    """Length of the run, optimiser steps."""
    batch_size: int = 16
    """Global batch: images over all processes and accumulated micro-batches."""
    micro_batch: int = 0
    """Images a forward pass on one process; 0: the whole share of the process. Smaller ones accumulate gradients, and batch
    norm then sees the micro-batch only."""
    weights: str = ""
    """What training starts from: a run folder, a checkpoint, a public file of a segmentor or its backbone, or
    efficientnet_lite0, whose file a package brings; empty: none."""
    auxiliary_weight: float = 0.4
    """Weight of the auxiliary head's loss, where there is that head."""
    label_smoothing: float = 0.0
    """Share of a pixel's target that is spread evenly over all classes; 0: none (published)."""
    jaccard_weight: float = 0.0
    """Weight of a loss that is 1 - the batch's mean intersection over union, with probabilities; 0: none (published)."""
    ema_decay: float = 0.0
    """Weight of the old value in the moving average of the weights, per step, which is then what is tested; 0: no average."""
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    """Of the network's convolutions; auto: bf16 where the device computes in it, else fp32."""
    device: str = "auto"
    """auto: a GPU if there is one; or a torch device such as cpu."""
    seed: int = 0
    """Of weights, data order, augmentation and what layers draw."""
    data: DataConfig = field(default_factory=DataConfig)
    """The images."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What is done to them in training."""
    model: SegmentationConfig = field(default_factory=SegmentationConfig)
    """The segmentor."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimiser and its schedule."""
    test: TestConfig = field(default_factory=TestConfig)
    """How the run tests itself; `eval` and `predict` take the same sizes."""
    log: LogConfig = field(default_factory=LogConfig)
    """What is written."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("micro_batch", "auxiliary_weight", "jaccard_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must be in [0, 2**63)")

    def micro_batches(self, world_size: int) -> tuple[int, int]:
        """Return (images a micro-batch, micro-batches a process).

        Raises:
            ValueError: If processes or micro-batches do not divide the batch.
        """
        if self.batch_size % world_size:
            raise ValueError(f"batch_size is {self.batch_size}; {world_size} processes do not divide it")
        share = self.batch_size // world_size
        micro = self.micro_batch or share
        if share % micro:
            raise ValueError(f"micro_batch is {micro}; it must divide the {share} images of a process")
        return micro, share // micro


FREE_KEYS = ("device", "log.", "test.", "data.path", "data.num_workers", "weights")
"""Keys that may change when a run is taken up again: they do not change what a step computes."""


def load_config(preset: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a preset with command-line overrides (`--section.key value`) laid over it.

    Raises:
        FileNotFoundError: If there is no such preset.
        ValueError: For an unknown key or a value that is not allowed; names where it stands.
    """
    values, sources = configuration.parse_overrides(overrides)
    mapping = configuration.merge(configuration.read_preset(preset), values)
    return configuration.from_mapping(TrainConfig, mapping, str(preset), sources)

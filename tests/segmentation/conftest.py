"""A segmentor, a run and data sets on the disk that a test can afford."""

from pathlib import Path

import numpy as np
import pytest
from labelled_files import write_pair

from hamgan.segmentation.augment import AugmentConfig
from hamgan.segmentation.config import LogConfig, TrainConfig
from hamgan.segmentation.evaluate import TestConfig
from hamgan.segmentation.model import SegmentationConfig
from hamgan.segmentation.open_data import DataConfig
from hamgan.segmentation.optimizer import OptimizerConfig
from hamgan.segmentation.scenes import SceneConfig


@pytest.fixture
def tiny_model() -> SegmentationConfig:
    """Light-Ham on a VAN of a few channels, with dropout and drop path."""
    return SegmentationConfig(
        num_classes=10,
        backbone="van_tiny",
        backbone_dims=(8, 8, 16, 16),
        backbone_depths=(1, 1, 1, 1),
        mlp_ratios=(2, 2, 2, 2),
        drop_path=0.2,
        squeeze_channels=32,
        channels=32,
        rank=4,
    )


@pytest.fixture
def tiny_run(tiny_model: SegmentationConfig) -> TrainConfig:
    """Six steps on scenes of 32x32 pixels, in two micro-batches a step."""
    return TrainConfig(
        steps=6,
        batch_size=4,
        micro_batch=2,
        precision="fp32",
        device="cpu",
        data=DataConfig(
            kind="scenes", test_split="test", num_workers=0, num_train=10, num_test=3, scenes=SceneConfig(resolution=40)
        ),
        augment=AugmentConfig(scale=(), ratios=(0.8, 1.25), crop=32),
        model=tiny_model,
        optimizer=OptimizerConfig(lr=1e-3, warmup=2),
        test=TestConfig(scale=(), multiple=1),
        log=LogConfig(stats_every=1, checkpoint_every=3, keep_checkpoints=3, test_every=3, picture_images=2),
    )


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Three labelled images of different sizes in a pair of folders, three classes and ignored pixels."""
    root = tmp_path / "labelled"
    rng = np.random.default_rng(0)
    for index, shape in enumerate([(40, 52), (33, 64), (64, 33)]):
        labels = rng.choice(np.array([0, 1, 2, 255]), shape)
        write_pair(root, f"images/val/{index}.jpg", f"masks/val/{index}.png", labels)
    (root / "classes.txt").write_text("sky\nground\nthing\n")
    return root

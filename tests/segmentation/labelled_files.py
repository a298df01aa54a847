"""Labelled images on the disk."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from hamgan.segmentation.config import TrainConfig
from hamgan.segmentation.open_data import DataConfig


def write_pair(root: Path, image: str, mask: str, labels: np.ndarray) -> None:
    """Write an image of noise and a mask of one channel."""
    rng = np.random.default_rng(labels.size)
    for name in (image, mask):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*labels.shape, 3), dtype=np.uint8)).save(root / image)
    Image.fromarray(labels.astype(np.uint8)).save(root / mask)


def with_folders(config: TrainConfig, root: Path) -> TrainConfig:
    """Return a run's configuration for the pair of folders."""
    data = DataConfig(kind="folders", path=str(root), train_split="val", test_split="val", num_workers=0)
    return replace(config, data=data, model=replace(config.model, num_classes=3))

"""A configuration with all that an exact resume has to get right, on networks that a test can afford."""

from pathlib import Path

import pytest

from hamgan.models.discriminator import DiscriminatorConfig
from hamgan.models.generator import GeneratorConfig
from hamgan.training.augment import AugmentConfig
from hamgan.training.config import DataConfig, LogConfig, TrainConfig


@pytest.fixture
def config(
    data_file: Path, tiny_generator_config: GeneratorConfig, tiny_discriminator_config: DiscriminatorConfig
) -> TrainConfig:
    return TrainConfig(
        duration="6 steps",
        batch_size=8,
        micro_batch=4,
        d_steps=2,
        anneal=0.5,
        precision="bf16",
        device="cpu",
        data=DataConfig(path=str(data_file)),
        generator=tiny_generator_config,
        discriminator=tiny_discriminator_config,
        augment=AugmentConfig(kinds=("color", "translation", "cutout")),
        log=LogConfig(
            stats_every="1 step",
            grid_every="3 steps",
            health_every="3 steps",
            checkpoint_every="3 steps",
            keep_checkpoints=3,
            grid_columns=2,
        ),
    )

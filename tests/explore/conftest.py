"""A tiny snapshot to explore."""

from pathlib import Path

import pytest
import torch

from hamgan import snapshot
from hamgan.models.generator import Generator, GeneratorConfig
from hamgan.sampling.standing import measure_standing_statistics

NAMES = ("cat", "dog & <fox>", "bird")


@pytest.fixture(scope="session")
def explored_shot(tiny_generator_config: GeneratorConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, a ham that speaks, standing statistics for truncation 0.8."""
    torch.manual_seed(0)
    G = Generator(tiny_generator_config).eval().requires_grad_(False)
    G.contexts[1].gate.fill_(1.0)  # type: ignore[operator]
    path = tmp_path_factory.mktemp("explored") / "snapshot-00000001.safetensors"
    levels = (measure_standing_statistics(G, z_dim=16, num_classes=3, truncation=0.8, num_images=32, batch_size=16),)
    snapshot.write(path, snapshot.Snapshot(generator=G, class_names=NAMES, standing=levels))
    return path

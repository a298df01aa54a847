"""A tiny generator whose every part speaks."""

import pytest
import torch

from hamgan.models.generator import Generator, GeneratorConfig


@pytest.fixture
def G(tiny_generator_config: GeneratorConfig) -> Generator:
    torch.manual_seed(0)
    network = Generator(tiny_generator_config).eval().requires_grad_(False)
    network.contexts[1].gate.fill_(1.0)  # type: ignore[operator]
    return network

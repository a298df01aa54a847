"""Mixtures of classes: exact at the corners, linear between them, in both kinds of generator."""

import dataclasses

import pytest
import torch

from hamgan.models.generator import Generator, GeneratorConfig
from hamgan.nn.class_table import ClassTable


def test_a_mixture_of_classes_reads_the_mixture_of_rows() -> None:
    table = ClassTable(5, 7)
    mixture = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]])
    expected = 0.25 * table.weight[1] + 0.75 * table.weight[3]
    assert torch.allclose(table(mixture)[0], expected) and torch.equal(table(mixture)[1], table.weight[2])


@pytest.mark.parametrize("conditioning", ["shared", "per_class"])
def test_one_class_alone_gives_the_same_image_in_either_form(
    tiny_generator_config: GeneratorConfig, conditioning: str
) -> None:
    config = dataclasses.replace(
        tiny_generator_config, conditioning=conditioning, hierarchical=conditioning == "shared"
    )  # type: ignore[arg-type]
    torch.manual_seed(0)
    G = Generator(config).eval()
    with torch.no_grad():
        for parameter in G.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        z, y = torch.randn(4, config.z_dim), torch.tensor([0, 1, 2, 1])
        one_hot = torch.nn.functional.one_hot(y, 3).float()
        assert torch.equal(G(z, one_hot), G(z, y))
        assert not torch.equal(G(z, 0.5 * one_hot + 0.5 / 3), G(z, y))

"""Closed-form directions against eigenvectors, and against what a step along them does."""

import dataclasses

import pytest
import torch

from hamgan.models.generator import Generator, GeneratorConfig
from hamgan.sampling.directions import edits, layer_directions
from hamgan.sampling.latents import seeded_latents


def test_they_are_the_eigenvectors_of_the_first_layers_gram_matrix(G: Generator) -> None:
    found = layer_directions(G)
    weight = G.linear.spectral_norm(G.linear.weight).double()
    values, vectors = torch.linalg.eigh(weight.t() @ weight)
    assert torch.allclose(found.gains.double().square(), values.flip(0), rtol=1e-4, atol=1e-6)
    cosines = (found.vectors[:, :4].double() * vectors.flip(1).t()).sum(1).abs()
    assert torch.allclose(cosines, torch.ones(4).double(), atol=1e-5)
    assert found.vectors.shape == (4, 16) and (found.vectors[:, 4:] == 0).all()
    assert (found.vectors.gather(1, found.vectors.abs().argmax(1, keepdim=True)) > 0).all()


def test_a_step_moves_the_layer_by_its_gain_and_no_direction_moves_it_more(G: Generator) -> None:
    for layer in range(4):
        found = layer_directions(G, layer)
        z = seeded_latents([0], 16)[0]
        assert torch.allclose(found.vectors @ found.vectors.t(), torch.eye(4), atol=1e-5)

        def outputs(latents: torch.Tensor, layer: int = layer) -> torch.Tensor:
            chunks = latents.chunk(4, 1)
            if layer == 0:
                return G.linear(chunks[0])
            c = torch.cat([G.embed(torch.zeros(len(latents), dtype=torch.int64)), chunks[layer]], 1)
            block = G.blocks[layer - 1]
            norms = [block.norm1, block.norm2]
            if layer == 2:
                norms.append(G.contexts[1].upper_bread_norm)
            return torch.cat([part(c) for norm in norms for part in (norm.gain, norm.bias)], 1)

        for vector, gain in zip(found.vectors, found.gains, strict=True):
            moved = outputs(edits(z, vector, torch.tensor([-1.0, 0.0, 1.0])))
            assert torch.allclose((moved[2] - moved[1]).norm(), gain, rtol=1e-3)
        random = torch.nn.functional.normalize(torch.randn(50, 16) * (found.vectors.abs().sum(0) > 0), dim=1)
        assert (outputs(z + random) - outputs(z[None])).norm(dim=1).max() <= found.gains[0] * 1.001


def test_a_layer_that_z_does_not_reach_is_refused(G: Generator, tiny_generator_config: GeneratorConfig) -> None:
    with pytest.raises(ValueError, match="--layer is 4; allowed are 0 to 3"):
        layer_directions(G, 4)
    plain = Generator(dataclasses.replace(tiny_generator_config, hierarchical=False))
    assert layer_directions(plain).vectors.shape == (16, 16)
    with pytest.raises(ValueError, match="hierarchical is false"):
        layer_directions(plain, 1)

"""Standing statistics: against moments taken by hand, between levels, and without a trace on the generator."""

import copy

import pytest
import torch

from hamgan.models.generator import Generator
from hamgan.nn.norm import BatchStatistics
from hamgan.sampling.latents import seeded_latents
from hamgan.sampling.standing import (
    FIRST_SEED,
    StandingStatistics,
    measure_standing_statistics,
    running_names,
    statistics_at,
    with_statistics,
)


def measured(G: Generator, truncation: float | None, num_images: int = 64, batch_size: int = 16) -> StandingStatistics:
    return measure_standing_statistics(
        G, z_dim=16, num_classes=3, truncation=truncation, num_images=num_images, batch_size=batch_size
    )


def test_the_first_norm_gets_the_moments_of_what_it_is_given(G: Generator) -> None:
    before = copy.deepcopy(G.state_dict())
    found = measured(G, 0.5)
    assert all(torch.equal(before[name], tensor) for name, tensor in G.state_dict().items()) and not G.training
    z = seeded_latents(range(FIRST_SEED, FIRST_SEED + 64), 16, 0.5)
    h = G.linear(z.chunk(4, 1)[0]).unflatten(1, (-1, 4, 4)).double()
    mean, var = found.tensors["blocks.0.norm1.statistics.running_mean"], "blocks.0.norm1.statistics.running_var"
    assert torch.allclose(mean.double(), h.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(found.tensors[var].double(), h.var((0, 2, 3)), rtol=1e-5)


def test_one_batch_gives_what_batch_norm_itself_stores(G: Generator) -> None:
    found = measured(G, 0.7, num_images=32, batch_size=32)
    network = copy.deepcopy(G)
    for module in network.modules():
        if isinstance(module, BatchStatistics):
            module.train()
            module.momentum = 1.0
    y = torch.randint(3, (32,), generator=torch.Generator().manual_seed(0))
    network(seeded_latents(range(FIRST_SEED, FIRST_SEED + 32), 16, 0.7), y)
    state = network.state_dict()
    for name, tensor in found.tensors.items():
        assert torch.allclose(tensor, state[name], rtol=1e-4, atol=1e-6), name


def test_statistics_matter_and_weights_are_shared(G: Generator) -> None:
    z, y = seeded_latents(range(64), 16, 0.3), torch.arange(64) % 3
    other = with_statistics(G, measured(G, 0.3))
    assert other.linear.weight is G.linear.weight and not torch.equal(other(z, y), G(z, y))
    inputs: list[torch.Tensor] = []
    other.output_norm.statistics.register_forward_pre_hook(lambda norm, given: inputs.append(norm.normalize(given[0])))
    other(z, y)
    # Standardised as training would see it: mean 0 and variance 1, which the running averages of nothing do not give.
    assert inputs[0].mean((0, 2, 3)).abs().max() < 0.3 and (inputs[0].var((0, 2, 3)) - 1).abs().max() < 0.5


def test_between_levels_the_blend_is_linear_and_outside_there_is_none(G: Generator) -> None:
    levels = [measured(G, 0.8), measured(G, 0.4), measured(G, None)]
    name = running_names(G)[0]
    assert statistics_at(levels, 0.4) is levels[1] and statistics_at(levels, None) is levels[2]
    between = statistics_at(levels, 0.5)
    assert between is not None and between.truncation == 0.5
    assert torch.allclose(between.tensors[name], 0.75 * levels[1].tensors[name] + 0.25 * levels[0].tensors[name])
    assert statistics_at(levels, 0.3) is None and statistics_at(levels, 0.9) is None
    assert statistics_at(levels[:2], None) is None and statistics_at([], 0.5) is None


def test_another_networks_statistics_are_refused(G: Generator) -> None:
    found = measured(G, 0.5)
    del found.tensors[running_names(G)[0]]
    with pytest.raises(ValueError, match="of another network"):
        with_statistics(G, found)
    with pytest.raises(ValueError, match="batch_size is 1"):
        measured(G, 0.5, batch_size=1)

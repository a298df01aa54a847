"""Gradient checkpointing: the same numbers and the same state, for less memory."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hamgan.models.discriminator import Discriminator, DiscriminatorConfig
from hamgan.models.generator import Generator, GeneratorConfig


def passes(network: nn.Module, run: Callable[[nn.Module], Tensor], *, recompute: bool) -> dict[str, Tensor]:
    """Take two forward and backward passes; return all that they give and change."""
    network = copy.deepcopy(network).train()
    network.recompute = recompute
    out = {}
    for index in range(2):
        network.zero_grad(set_to_none=True)
        torch.manual_seed(index)
        images = run(network)
        images.square().sum().backward()
        out[f"out{index}"] = images.detach()
        out |= {f"{name}.grad{index}": p.grad for name, p in network.named_parameters()}
    return out | network.state_dict()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("which", ["G", "D"])
def test_gradients_and_state_are_the_same_to_the_last_bit(
    which: str,
    precision: torch.dtype,
    tiny_generator_config: GeneratorConfig,
    tiny_discriminator_config: DiscriminatorConfig,
) -> None:
    torch.manual_seed(0)
    network = Generator(tiny_generator_config) if which == "G" else Discriminator(tiny_discriminator_config)
    y = torch.tensor([0, 1, 2, 0])

    def run(network: nn.Module) -> Tensor:
        x = torch.randn(4, 16) if which == "G" else torch.randn(4, 3, 32, 32)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            return network(x, y, torch.arange(4)).float()

    plain, again = (passes(network, run, recompute=value) for value in (False, True))
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[key], again[key]) for key in plain)


def test_the_inner_maps_are_not_kept(tiny_discriminator_config: DiscriminatorConfig) -> None:
    network = Discriminator(tiny_discriminator_config).train()
    sizes = []
    for recompute in (False, True):
        network.recompute = recompute
        kept: dict[int, int] = {}

        def pack(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = network(torch.randn(16, 3, 32, 32), torch.zeros(16, dtype=torch.int64))
        sizes.append(sum(kept.values()))
        logits.sum().backward()
    assert sizes[1] < 0.6 * sizes[0]

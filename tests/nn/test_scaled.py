"""Scales that go into weights instead of over maps: the same values and gradients, to the second derivative."""

import copy

import pytest
import torch
from conftest import relative_error
from torch import Tensor, nn

from hamgan.nn.attention import SelfAttention
from hamgan.nn.hamburger import Hamburger, HamburgerConfig
from hamgan.nn.norm import BatchNorm, BatchStatistics
from hamgan.nn.spectral_norm import SNConv2d, SpectralNormConfig


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [0.0, 0.7])
def test_a_scaled_convolution(bias: bool, scale: float) -> None:
    torch.manual_seed(0)
    layer = SNConv2d(5, 4, 3, bias=bias, spectral_norm=SpectralNormConfig()).double().eval()
    x, factor = torch.randn(2, 5, 6, 6).double().requires_grad_(True), torch.tensor(scale).double().requires_grad_(True)
    parameters = [x, factor, *layer.parameters()]
    found = []
    for out in (layer.scaled(x, factor), factor * layer(x)):
        first = torch.autograd.grad(out.square().sum() + out.sum(), parameters, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), parameters)
        found.append([out, *first, *second])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def blocks() -> dict[str, nn.Module]:
    equality = SpectralNormConfig()
    hams = {version: HamburgerConfig(rank=4, version=version) for version in ("V1", "V2", "V2+")}  # type: ignore[arg-type]
    made: dict[str, nn.Module] = {
        version: Hamburger(16, 8, config, spectral_norm=equality, norm=None) for version, config in hams.items()
    }
    return made | {"attention": SelfAttention(16, spectral_norm=equality)}


@pytest.mark.parametrize("kind", blocks())
@pytest.mark.parametrize("bf16", [False, True])
def test_a_context_block_is_its_shortcut_and_the_gated_rest(kind: str, bf16: bool) -> None:
    torch.manual_seed(0)
    block = blocks()[kind].eval()
    nn.init.constant_(block.gate, 0.3)
    ungated = copy.deepcopy(block)
    nn.init.constant_(ungated.gate, 1.0)
    x, weight = torch.randn(2, 16, 8, 8), torch.randn(2, 16, 8, 8)

    def run(module: nn.Module) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return module(x).float()

    out = run(block)
    (gradient,) = torch.autograd.grad((out * weight).sum(), block.gate)
    rest = run(ungated) - x
    tolerance = 0.02 if bf16 else 1e-5
    assert relative_error(out, x + 0.3 * rest) < tolerance
    assert gradient.dtype == torch.float32 and relative_error(gradient, (rest * weight).sum()) < tolerance


@pytest.mark.parametrize("training", [True, False])
def test_a_norm_is_its_standardised_map_scaled(training: bool) -> None:
    torch.manual_seed(0)
    options = {"eps": 1e-4, "momentum": 0.1, "cross_replica": False}
    norm, plain = BatchNorm(6, **options), BatchStatistics(6, **options)  # type: ignore[arg-type]
    nn.init.normal_(norm.gain)
    nn.init.normal_(norm.bias)
    x, weight = torch.randn(3, 6, 5, 5), torch.randn(3, 6, 5, 5)
    for module in (norm, plain):
        module.train(training)
    out = norm(x)
    expected = norm.gain[:, None, None] * plain(x) + norm.bias[:, None, None]
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(norm.statistics.running_var, plain.running_var)
    parameters = list(norm.parameters())
    for ours, theirs in zip(
        *(torch.autograd.grad((y * weight).sum(), parameters) for y in (out, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)

"""The plain networks that benchmarks compare with compute what ours do."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hamgan.models.discriminator import Discriminator, DiscriminatorConfig
from hamgan.models.generator import Generator, GeneratorConfig

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("context", ["none", "attention", "ham"])
def test_the_reference_networks_compute_the_same_function(
    context: str,
    tiny_generator_config: GeneratorConfig,
    tiny_discriminator_config: DiscriminatorConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    networks = importlib.import_module("reference.networks")
    torch.manual_seed(0)
    g_config = replace(tiny_generator_config, channels=8, context=context)
    d_config = replace(tiny_discriminator_config, channels=8, context=context)
    G, D = Generator(g_config), Discriminator(d_config)
    with torch.no_grad():
        for network in (G, D):
            for name, parameter in network.named_parameters():
                if name.endswith("gate"):
                    parameter.fill_(0.7)  # 0 at the start, which would hide the context
    plain_g, plain_d = networks.Generator(g_config), networks.Discriminator(d_config)
    plain_g.load_state_dict(G.state_dict(), strict=context != "ham")  # the plain block keeps no bases
    plain_d.load_state_dict(D.state_dict(), strict=context != "ham")
    z, y = torch.randn(6, g_config.z_dim), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.manual_seed(1)  # both draw a ham's bases from torch's generator: the same numbers from the same seed
    images = G(z, y)
    torch.manual_seed(1)
    plain_images = plain_g(z, y)
    torch.testing.assert_close(images, plain_images, rtol=1e-4, atol=1e-4)
    torch.manual_seed(2)
    logits = D(images.detach(), y)
    torch.manual_seed(2)
    torch.testing.assert_close(logits, plain_d(images.detach(), y), rtol=1e-4, atol=1e-4)

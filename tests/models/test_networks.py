"""The two networks: parameter counts of the published ones, shapes, determinism, and the configuration's errors."""

import pytest
import torch

from hamgan.models.discriminator import Discriminator, DiscriminatorConfig
from hamgan.models.generator import Generator, GeneratorConfig
from hamgan.nn.decomposition import MatrixDecomposition
from hamgan.nn.hamburger import HamburgerConfig
from hamgan.nn.spectral_norm import SpectralNormConfig

TF_NORM = SpectralNormConfig(mode="inequality", side="input")


def count(config: GeneratorConfig | DiscriminatorConfig) -> int:
    with torch.device("meta"):
        network = Generator(config) if isinstance(config, GeneratorConfig) else Discriminator(config)
    return sum(p.numel() for p in network.parameters())


def test_biggan_has_the_published_number_of_parameters() -> None:
    assert count(GeneratorConfig()) == 70_433_988
    assert count(DiscriminatorConfig()) == 87_982_370


def test_hamgan_has_the_published_number_of_parameters() -> None:
    g = GeneratorConfig(
        channels=64,
        z_dim=128,
        conditioning="per_class",
        hierarchical=False,
        context="ham",
        context_resolutions=(32,),
        spectral_norm=TF_NORM,
    )
    d = DiscriminatorConfig(channels=64, context="ham", context_resolutions=(32,), spectral_norm=TF_NORM)
    assert count(g) == 42_640_004
    assert count(d) == 39_475_906
    with torch.device("meta"):
        G, D = Generator(g), Discriminator(d)
    assert sum(p.numel() for p in G.contexts.parameters()) == 643_073
    assert sum(p.numel() for p in D.contexts.parameters()) == 32_769


@pytest.mark.parametrize("resolution", [32, 64, 128, 256])
@pytest.mark.parametrize("context", ["ham", "attention", "none"])
def test_every_resolution_and_context_runs_forward_and_backward(resolution: int, context: str) -> None:
    torch.manual_seed(0)
    blocks = {32: 3, 64: 4, 128: 5, 256: 6}[resolution]
    G = Generator(
        GeneratorConfig(
            resolution=resolution,  # type: ignore[arg-type]
            channels=1,
            num_classes=3,
            z_dim=2 * (blocks + 1),
            embedding_dim=4,
            context=context,  # type: ignore[arg-type]
            context_resolutions=(16,),
            ham=HamburgerConfig(rank=2),
        )
    )
    D = Discriminator(
        DiscriminatorConfig(
            resolution=resolution,  # type: ignore[arg-type]
            channels=1,
            num_classes=3,
            context=context,  # type: ignore[arg-type]
            context_resolutions=(16,),
            ham=HamburgerConfig(rank=2),
        )
    )
    y = torch.tensor([0, 2])
    images = G(torch.randn(2, G.config.z_dim), y)
    assert images.shape == (2, 3, resolution, resolution) and images.abs().max() <= 1
    logits = D(images, y)
    assert logits.shape == (2, 1)
    logits.sum().backward()
    gradients = [p.grad for network in (G, D) for p in network.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)


def test_hierarchical_chunks_of_z_reach_every_block(tiny_generator_config: GeneratorConfig) -> None:
    torch.manual_seed(0)
    G = Generator(tiny_generator_config).eval()
    z, y = torch.randn(1, 16), torch.tensor([1])
    base = G(z, y)
    for chunk in range(4):
        moved = z.clone()
        moved[:, 4 * chunk : 4 * chunk + 4] += 1
        assert not torch.allclose(G(moved, y), base, atol=1e-5), f"chunk {chunk} has no effect"


def test_an_image_depends_on_its_z_and_class_alone(tiny_generator_config: GeneratorConfig) -> None:
    torch.manual_seed(0)
    G = Generator(tiny_generator_config).eval()
    with torch.no_grad():
        for context in G.contexts:
            if hasattr(context, "gate"):
                context.gate.fill_(1.0)
        z, y = torch.randn(5, 16), torch.tensor([0, 1, 2, 1, 0])
        together = G(z, y)
        assert torch.equal(together, G(z, y))
        for index in range(5):
            alone = G(z[index : index + 1], y[index : index + 1])
            assert torch.allclose(alone, together[index : index + 1], atol=1e-5)
    hams = [m for m in G.modules() if isinstance(m, MatrixDecomposition)]
    assert len(hams) == 1 and "contexts.1.spatial_ham.bases" in G.state_dict()


def test_the_discriminator_projects_on_the_class(tiny_discriminator_config: DiscriminatorConfig) -> None:
    torch.manual_seed(0)
    D = Discriminator(tiny_discriminator_config).eval()
    x = torch.randn(2, 3, 32, 32)
    h = D.features(x)
    y = torch.tensor([0, 2])
    vectors = D.embedding(torch.arange(3))
    assert torch.allclose(D(x, y), D.linear(h) + (vectors[y] * h).sum(1, keepdim=True), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 48}, r"generator\.resolution is 48; allowed are 32, 64, 128, 256"),
        ({"z_dim": 121}, r"generator\.z_dim is 121"),
        ({"conditioning": "per_class"}, r"generator\.hierarchical is true"),
        ({"channel_multipliers": (4, 4)}, r"generator\.channel_multipliers is \[4, 4\]; at resolution 128 it needs 6"),
        (
            {"context_resolutions": (48,)},
            r"generator\.context_resolutions has 48; its blocks put out 8, 16, 32, 64, 128",
        ),
        ({"batch_norm_momentum": 0.0}, r"generator\.batch_norm_momentum is 0\.0"),
        ({"num_classes": 0}, r"generator\.num_classes is 0"),
    ],
)
def test_bad_architectures_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeneratorConfig(**options)  # type: ignore[arg-type]

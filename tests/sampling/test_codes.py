"""The ham's codes: shares of a whole, exact against a decomposition done by hand, for every kind of ham."""

import dataclasses

import pytest
import torch

from hamgan.models.generator import Generator, GeneratorConfig
from hamgan.nn.hamburger import Hamburger, HamburgerConfig
from hamgan.sampling.codes import draw_with_codes, order_of_use, overlay, segment_colors
from hamgan.sampling.draw import draw_images
from hamgan.sampling.latents import seeded_latents


def test_images_are_those_of_sample_and_shares_add_up(G: Generator) -> None:
    z, y = seeded_latents(range(18), 16), torch.arange(18) % 3
    images, (codes,) = draw_with_codes(G, z, y)
    assert torch.equal(images, draw_images(G, range(18), y.tolist()))
    assert codes.name == "contexts.1" and codes.segments.shape == (18, 4, 16, 16)
    assert codes.usage.shape == (7, 18, 4) and codes.error.shape == (7, 18)
    assert torch.allclose(codes.segments.sum(1), torch.ones(18, 16, 16), atol=1e-5)
    assert torch.allclose(codes.usage.sum(2), torch.ones(7, 18), atol=1e-5)
    assert (codes.segments >= 0).all() and (codes.error.diff(dim=0) < 1e-3).all()  # more steps fit no worse


def test_segments_are_the_codes_weighed_by_their_bases(G: Generator) -> None:
    z, y = seeded_latents([3], 16), torch.tensor([1])
    _, (codes,) = draw_with_codes(G, z, y)
    block = G.contexts[1]
    assert isinstance(block, Hamburger) and block.spatial_ham is not None
    caught: list[torch.Tensor] = []
    handle = block.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    G(z.expand(16, -1), y.expand(16))
    handle.remove()
    columns = block.columns_of(caught[0][:1]).flatten(2)
    bases, coef = block.spatial_ham.decompose(columns)
    parts = torch.stack([(bases[0, :, r, None] * coef[0, None, :, r]).norm(dim=0) for r in range(4)])
    assert torch.allclose(codes.segments[0].flatten(1), parts / parts.sum(0), atol=1e-5)
    error = (columns - bases @ coef.transpose(1, 2)).norm() / columns.norm()
    assert torch.allclose(codes.error[-1, 0], error, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "layout", "version", "sections"),
    [("NMF", "channel", "V1", 1), ("CD", "dual", "V2+", 1), ("VQ", "spatial", "V2", 2)],
)
def test_every_ham_shows_its_codes(
    tiny_generator_config: GeneratorConfig, kind: str, layout: str, version: str, sections: int
) -> None:
    ham = HamburgerConfig(kind=kind, layout=layout, version=version, num_sections=sections, rank=3, latent_channels=8)  # type: ignore[arg-type]
    torch.manual_seed(0)
    G = Generator(dataclasses.replace(tiny_generator_config, ham=ham)).eval()
    _, found = draw_with_codes(G, seeded_latents([0, 1], 16), torch.tensor([0, 1]))
    assert [codes.name for codes in found] == (
        ["contexts.1 (spatial)", "contexts.1 (channel)"] if layout == "dual" else ["contexts.1"]
    )
    for codes in found:
        assert codes.segments.shape == (2, 3 * sections, 16, 16) and codes.segments.isfinite().all()
        assert torch.allclose(codes.usage.sum(2), torch.ones(len(codes.usage), 2), atol=1e-4)


def test_the_overlay_tints_a_pixel_with_its_segments_color(G: Generator) -> None:
    images, (codes,) = draw_with_codes(G, seeded_latents([0], 16), torch.tensor([0]))
    one = torch.zeros_like(codes.segments)
    one[:, 2] = 1
    colors = torch.zeros(4, 3)
    colors[2, 0] = 1
    tinted = overlay(torch.full_like(images, 255), dataclasses.replace(codes, segments=one), colors, zoom=2, strength=1)
    assert tinted.shape == (1, 3, 64, 64) and (tinted[:, 0] == 255).all() and (tinted[:, 1:] == 0).all()
    assert order_of_use(codes)[0] == codes.usage[-1].mean(0).argmax()
    palette = segment_colors(12)
    assert torch.pdist(palette).min() > 0.1 and palette.min() >= 0 and palette.max() <= 1


def test_a_generator_without_a_ham_says_so(tiny_generator_config: GeneratorConfig) -> None:
    G = Generator(dataclasses.replace(tiny_generator_config, context="attention")).eval()
    with pytest.raises(ValueError, match="has no Hamburger"):
        draw_with_codes(G, seeded_latents([0], 16), torch.tensor([0]))

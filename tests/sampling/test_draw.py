"""Samples depend on nothing but seed, class and snapshot."""

import pytest
import torch

from hamgan.models.generator import Generator
from hamgan.sampling.draw import draw_images, to_uint8
from hamgan.sampling.grid import GAP, make_grid
from hamgan.sampling.latents import parse_classes, parse_seeds, parse_truncations, seeded_latents


def test_an_image_is_the_same_whatever_is_drawn_beside_it(G: Generator) -> None:
    seeds = list(range(100, 164))
    classes = [seed % 3 for seed in seeds]
    together = draw_images(G, seeds, classes)
    assert together.shape == (64, 3, 32, 32) and together.dtype == torch.uint8
    for index in (0, 7, 15, 16, 63):
        assert torch.equal(draw_images(G, [seeds[index]], [classes[index]])[0], together[index])
    backwards = draw_images(G, seeds[::-1], classes[::-1])
    assert torch.equal(backwards.flip(0), together)
    torch.manual_seed(99)
    assert torch.equal(draw_images(G, seeds, classes), together)


def test_truncation_draws_the_tail_again() -> None:
    plain, cut = seeded_latents([1, 2], 500), seeded_latents([1, 2], 500, truncation=0.8)
    inside = plain.abs() <= 0.8
    assert cut.abs().max() <= 0.8 and torch.equal(cut[inside], plain[inside])
    # Resampled, not clamped or scaled: nothing sits on the edge, and the middle keeps its density.
    assert (cut.abs() > 0.799).float().mean() < 0.01
    for bad in (0.0, -1.0, 50.0, float("nan")):
        with pytest.raises(ValueError, match=r"truncation is .*; it must be in \[0.02, 10\]"):
            seeded_latents([1], 4, truncation=bad)


def test_scaling_is_another_thing_than_truncation() -> None:
    plain, scaled = seeded_latents([1, 2], 500), seeded_latents([1, 2], 500, z_scale=0.5)
    assert torch.equal(scaled, plain * 0.5) and scaled.abs().max() > 0.8
    both = seeded_latents([1, 2], 500, truncation=0.8, z_scale=0.5)
    assert torch.equal(both, seeded_latents([1, 2], 500, truncation=0.8) * 0.5)
    with pytest.raises(ValueError, match=r"z_scale is -1"):
        seeded_latents([1], 4, z_scale=-1.0)


def test_rounding_is_to_nearest() -> None:
    levels = torch.arange(256)
    assert torch.equal(to_uint8(levels / 127.5 - 1), levels.to(torch.uint8))
    assert to_uint8(torch.tensor([-2.0, 2.0])).tolist() == [0, 255]


def test_a_grid_holds_its_images() -> None:
    images = torch.randint(0, 256, (5, 3, 4, 6), dtype=torch.uint8)
    grid = make_grid(images, 3)
    assert grid.shape == (3, 8 + GAP, 18 + 2 * GAP)
    assert torch.equal(grid[:, 4 + GAP : 8 + GAP, 6 + GAP : 12 + GAP], images[4])
    assert (grid[:, :, 6 : 6 + GAP] == 255).all()


def test_bad_seeds_and_classes_are_named() -> None:
    assert parse_seeds("0-2,7, 9") == [0, 1, 2, 7, 9]
    with pytest.raises(ValueError, match="--seeds has ''; name at least one seed"):
        parse_seeds("  ")
    for text in ("a", "3-1", "-1", "1.5", "0-9999999999", "9" * 20, "²"):
        with pytest.raises(ValueError, match="--seeds has"):
            parse_seeds(text)
    assert parse_classes("bird,0", ("cat", "dog", "bird"), 3) == [2, 0]
    assert parse_classes("1-2,0-0", ("cat", "dog", "bird"), 3) == [1, 2, 0]
    assert parse_classes("all", (), 3) == [0, 1, 2]
    with pytest.raises(ValueError, match="did you mean 'smileys' or 'smiling'"):
        parse_classes("Smile", ("smileys", "flags", "smiling"), 3)
    with pytest.raises(ValueError, match="did you mean 'food-and-drink'"):
        parse_classes("drink", ("food-and-drink", "flags"), 2)
    with pytest.raises(ValueError, match="--classes has '1-3'"):
        parse_classes("1-3", (), 3)
    with pytest.raises(ValueError, match=r"--classes has 'brid'; .*did you mean 'bird'"):
        parse_classes("brid", ("cat", "dog", "bird"), 3)
    with pytest.raises(ValueError, match="allowed are all, 0 to 2"):
        parse_classes("3", (), 3)


def test_truncations_are_read_as_levels() -> None:
    assert parse_truncations("0.1..1.0") == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert parse_truncations("0.5..2..0.5,none") == [0.5, 1.0, 1.5, 2.0, None]
    assert parse_truncations("0.04..0.1..0.02, .5") == [0.04, 0.06, 0.08, 0.1, 0.5]
    for text in ("", "a", "1..0.5", "0.1....5", "0.1..0.5..0", "-1", "0.1..9..0.0001"):
        with pytest.raises(ValueError, match="--truncations has"):
            parse_truncations(text)
    with pytest.raises(ValueError, match=r"truncation is 0\.01"):
        parse_truncations("0.01..0.5")

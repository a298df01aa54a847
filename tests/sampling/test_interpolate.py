"""Walks meet their keys exactly, stay on the arc between them, and draw what `sample` draws."""

import math

import pytest
import torch

from hamgan.models.generator import Generator
from hamgan.sampling.draw import draw_images
from hamgan.sampling.interpolate import linear, positions, spherical, walk_classes, walk_latents, walks
from hamgan.sampling.latents import seeded_latents


def test_both_curves_meet_their_ends_exactly() -> None:
    a, b = torch.randn(2, 5, 120, generator=torch.Generator().manual_seed(0))
    for curve in (linear, spherical):
        assert torch.equal(curve(a, b, torch.zeros(5)), a) and torch.equal(curve(a, b, torch.ones(5)), b)


def test_the_arc_moves_at_a_steady_angle_and_keeps_the_length() -> None:
    a, b = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 2.0])
    points = spherical(a.expand(4, 3), b.expand(4, 3), torch.tensor([0.25, 0.5, 1 / 3, 0.9]))
    angles = torch.tensor([0.25, 0.5, 1 / 3, 0.9]) * math.pi / 2
    expected = torch.stack([2 * angles.cos(), torch.zeros(4), 2 * angles.sin()], 1)
    assert torch.allclose(points, expected, atol=1e-6)
    assert linear(a, b, torch.tensor(0.5)).norm() < 1.5  # the chord is what spherical avoids
    for other in (a, 3 * a, -a):
        assert spherical(a, other, torch.tensor(0.5)).isfinite().all()


def test_frames_of_a_row_and_of_a_loop() -> None:
    before, after, t = positions(3, 4, loop=False)
    assert before.tolist() == [0] * 4 + [1] * 4 + [2] and t.tolist() == [0, 0.25, 0.5, 0.75] * 2 + [0]
    before, after, t = positions(3, 4, loop=True)
    assert len(t) == 12 and before[-1] == 2 and after[-1] == 0 and t[-1] == 0.75
    assert len(positions(1, 8, loop=False)[0]) == 1
    with pytest.raises(ValueError, match="frames is 0"):
        positions(2, 0, loop=False)
    with pytest.raises(ValueError, match="at least one seed"):
        walks([], [0], z_dim=4, num_classes=3)


def test_class_weights_add_up_and_are_whole_at_keys() -> None:
    weights = walk_classes([2, 0], 3, 4)
    assert torch.allclose(weights.sum(1), torch.ones(5)) and weights[0].tolist() == [0, 0, 1]
    assert weights[1].tolist() == [0.25, 0, 0.75] and weights[-1].tolist() == [1, 0, 0]


def test_a_loop_closes_as_smoothly_as_it_runs() -> None:
    path = walk_latents(seeded_latents([0, 1, 2], 16), 5, loop=True)
    steps = (path - path.roll(1, 0)).norm(dim=1)
    assert len(path) == 15 and steps.max() < 2 * steps.min()


@pytest.mark.parametrize("along", ["z", "class", "both"])
def test_every_key_is_the_image_that_sample_draws(G: Generator, along: str) -> None:
    seeds, classes = [5, 9, 2], [1, 0, 2]
    rows = walks(
        seeds, classes, z_dim=16, num_classes=3, along=along, frames=3, truncation=0.9, class_names=("a", "b", "c")
    )  # type: ignore[arg-type]
    assert len(rows) == (1 if along == "both" else 3) and sorted(rows[0].keys) == [0, 3, 6]
    for number, row in enumerate(rows):
        images = row.draw(G)
        assert images.shape[0] == 7 and not torch.equal(images[1], images[0])
        for key in range(3):
            seed = seeds[key] if along != "class" else seeds[number]
            y = classes[key] if along != "z" else classes[number]
            assert torch.equal(images[3 * key], draw_images(G, [seed], [y], 0.9)[0]), (number, key)


def test_the_same_latent_gives_the_same_image_in_every_frame(G: Generator) -> None:
    (row,) = walks([4, 4, 4], [1], z_dim=16, num_classes=3, frames=20)
    images = row.draw(G)
    assert len(images) == 41 and (images == draw_images(G, [4], [1])).all()
    # A frame does not depend on how many surround it: every second one of a finer walk is the coarser walk.
    (fine,) = walks([4, 7], [1], z_dim=16, num_classes=3, frames=24)
    (coarse,) = walks([4, 7], [1], z_dim=16, num_classes=3, frames=12)
    assert torch.equal(fine.draw(G)[::2], coarse.draw(G))

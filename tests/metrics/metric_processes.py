"""One small evaluation, run alone or by each of several processes; importable by those processes."""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
import torch.distributed as torch_dist
from metric_samples import labelled_images, make_tiny_extractor

from hamgan.metrics import (
    ArrayImages,
    DrawnImages,
    EvaluationSettings,
    FeatureStats,
    build_statistics,
    evaluate,
    load_statistics,
)

SETTINGS = EvaluationSettings(num_images=90, batch_size=8, chunk_size=16, inception_splits=3, neighbour_images=60)
NAMES = ("x", "y", "z")


def draw(numbers):
    """Image i from its own seed, whatever is drawn beside it."""
    pairs = [labelled_images(1, seed=1000 + int(i)) for i in numbers]
    return torch.cat([pixels for pixels, _ in pairs]), np.concatenate([labels for _, labels in pairs])


def run(reference, tiny, images=draw, settings=SETTINGS, **options):
    return evaluate(images, reference, tiny, settings=settings, progress=False, **options)


def numbers_of(card):
    return {name: number.value for name, number in card.numbers.items()}


def bad_on_one(numbers):
    if 17 in numbers:
        assert torch_dist.get_rank() == 1
        raise ValueError("image 17 is bad")
    return draw(numbers)


def check_all_reduce(rank, world_size):
    x = np.random.default_rng(0).normal(size=(50, 6)) + 1e3
    shares = np.split(x, [0] + [30] * (world_size - 2)) if world_size > 2 else [x[:0], x]  # rank 0 has seen nothing
    stats = FeatureStats(6)
    stats.update(shares[rank])
    stats.all_reduce()
    assert stats.n == 50
    np.testing.assert_allclose(stats.mu, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(stats.sigma, np.cov(x, rowvar=False), rtol=1e-9, atol=1e-10)


def one_of_several(rank, world_size, port, path, answer):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch_dist.init_process_group("gloo", rank=rank, world_size=world_size)
    tiny, reference = make_tiny_extractor(), load_statistics(path)
    try:
        card = run(reference, tiny)
        bigger = DrawnImages(lambda numbers: labelled_images(len(numbers), seed=0, size=16), 40)
        with pytest.raises(ValueError, match="resolution = 8, but the images have 16"):
            run(reference, tiny, bigger, dataclasses.replace(SETTINGS, num_images=40))
        growing = DrawnImages(lambda numbers: labelled_images(len(numbers), seed=0, size=8 + int(numbers[0] >= 32)), 40)
        with pytest.raises(ValueError, match="mixed sizes: 8x8 and 9x9"):  # on all, though only rank 0 can know
            run(reference, tiny, growing, dataclasses.replace(SETTINGS, num_images=40))
        with pytest.raises(ValueError, match="image 17 is bad"):  # on all, though only rank 1 has met it
            run(reference, tiny, DrawnImages(bad_on_one, 90))
        check_all_reduce(rank, world_size)
        with pytest.raises(ValueError, match="serves one process only"):
            run(reference, tiny, [draw(np.arange(90))])
        images = ArrayImages(*labelled_images(150, seed=0), class_names=NAMES)
        built = build_statistics(images, tiny, path.with_name("again.npz"), chunk_size=40, progress=False)
        assert (built is None) == (rank > 0)
    finally:
        torch_dist.destroy_process_group()
    (answer / f"{rank}.json").write_text(json.dumps(numbers_of(card)))

"""The published augmentation: sizes, label and image together, colours, and what it is a function of."""

import colorsys

import numpy as np
import pytest
import torch

from hamgan.segmentation.augment import MEAN, STD, AugmentConfig, augment, scale_saturation, scaled_size
from hamgan.segmentation.dataset import Sample
from hamgan.segmentation.loader import batches, image_index, sample_generator
from hamgan.segmentation.scenes import EmojiScenes, SceneConfig

PLAIN = AugmentConfig(
    scale=(), ratios=(1.0, 1.0), crop=24, brightness=0, contrast=(1.0, 1.0), saturation=(1.0, 1.0), hue=0
)


@pytest.mark.parametrize(
    ("height", "width", "ratio", "expected"),
    [
        (512, 683, 1.0, (512, 683)),
        (256, 341, 1.0, (512, 682)),
        (300, 2000, 1.0, (307, 2048)),  # the long side decides
        (512, 683, 0.75, (384, 512)),
        (683, 512, 1.75, (1195, 896)),
    ],
)
def test_sizes_keep_the_aspect_within_both_sides(
    height: int, width: int, ratio: float, expected: tuple[int, int]
) -> None:
    assert scaled_size(height, width, (2048, 512), ratio) == expected


def coded(shape: tuple[int, int]) -> Sample:
    """An image whose red is its label."""
    labels = np.random.default_rng(0).integers(0, 5, shape).astype(np.uint8)
    return Sample(np.repeat(labels[..., None], 3, 2), labels)


def red(image: torch.Tensor) -> torch.Tensor:
    return (image[0] * STD[0] + MEAN[0]).round().long()


def test_image_and_labels_are_cut_and_mirrored_together() -> None:
    sample = coded((40, 31))
    results = [augment(sample, PLAIN, np.random.default_rng(seed)) for seed in range(20)]
    for image, labels in results:
        assert image.shape == (3, 24, 24) and torch.equal(red(image), labels)
    assert len({labels.numpy().tobytes() for _, labels in results}) > 15
    mirrored = torch.from_numpy(sample.labels[:, ::-1].copy())
    windows = mirrored.unfold(0, 24, 1).unfold(1, 24, 1)
    assert any((windows == labels).all(-1).all(-1).any() for _, labels in results)


def test_small_images_are_padded_with_nothing() -> None:
    image, labels = augment(coded((10, 40)), PLAIN, np.random.default_rng(0))
    assert (image[:, 10:] == 0).all() and (labels[10:] == 255).all() and (labels[:10] < 5).all()


def test_a_crop_of_almost_one_class_is_drawn_again() -> None:
    labels = np.zeros((24, 200), np.uint8)
    labels[:, 100:] = 1
    sample = Sample(np.zeros((24, 200, 3), np.uint8), labels)

    def fitting(share: float) -> float:
        config = AugmentConfig(**{**vars(PLAIN), "max_class_share": share})
        crops = [augment(sample, config, np.random.default_rng(seed))[1] for seed in range(60)]
        return sum(0.25 < crop.float().mean() < 0.75 for crop in crops) / len(crops)

    # One crop in 177 / 12 has a border in its middle half; ten attempts find it in every other sample.
    assert fitting(1.0) < 0.2 < 0.3 < fitting(0.75)


def test_saturation_is_that_of_hsv() -> None:
    image = torch.randint(0, 256, (3, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    image[:, 0] = 77.0  # grey
    for factor in (0.5, 1.3, 4.0):
        ours = scale_saturation(image, factor)
        for y, x in np.ndindex(8, 8):
            h, s, v = colorsys.rgb_to_hsv(*(image[:, y, x] / 255).tolist())
            expected = colorsys.hsv_to_rgb(h, min(s * factor, 1), v)
            assert ours[:, y, x].tolist() == pytest.approx([255 * part for part in expected], abs=1e-3)


def test_colours_change_and_stay_in_range() -> None:
    sample = Sample(
        np.random.default_rng(1).integers(0, 256, (30, 30, 3), dtype=np.uint8), np.zeros((30, 30), np.uint8)
    )
    config = AugmentConfig(scale=(), ratios=(1.0, 1.0), crop=30, flip=False)
    images = torch.stack([augment(sample, config, np.random.default_rng(seed))[0] for seed in range(30)])
    pixels = images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert pixels.min() > -1e-2 and pixels.max() < 255.01
    assert len({image.numpy().tobytes() for image in images}) > 25
    unchanged = [
        torch.allclose(image, torch.from_numpy(sample.image).permute(2, 0, 1).float(), atol=0.01) for image in pixels
    ]
    assert 0 < sum(unchanged) < 8  # each of four changes is left out in one sample of two


def test_a_batch_follows_from_seed_step_and_place_whoever_makes_it() -> None:
    data = EmojiScenes(SceneConfig(resolution=40), "train", 7)
    config = AugmentConfig(scale=(), ratios=(0.5, 2.0), crop=32)

    def made(steps: range, places: range, num_workers: int) -> list[torch.Tensor]:
        stream = batches(
            data, config, seed=3, batch_size=4, steps=steps, places=places, num_workers=num_workers, pin_memory=False
        )
        return [torch.cat([images.flatten(1), labels.flatten(1).float()], 1) for images, labels in stream]

    whole = made(range(4), range(4), 0)
    assert all(torch.equal(a, b) for a, b in zip(made(range(2, 4), range(4), 2), whole[2:], strict=True))
    assert all(torch.equal(a, b[2:]) for a, b in zip(made(range(4), range(2, 4), 0), whole, strict=True))
    assert not torch.equal(whole[0], whole[1])
    again = augment(data.read(image_index(3, 4 * 1 + 2, 7)), config, sample_generator(3, 1, 2))
    assert torch.equal(whole[1][2, : again[0].numel()], again[0].flatten())


def test_every_epoch_shows_every_image_once() -> None:
    epochs = [[image_index(5, epoch * 13 + place, 13) for place in range(13)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]

"""How objects of training scenes vary: colours as asked, alpha kept, tests untouched; the split that recipes are chosen on."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from hamgan.segmentation import emoji
from hamgan.segmentation.open_data import DataConfig, open_data
from hamgan.segmentation.scenes import EmojiScenes, SceneConfig
from hamgan.segmentation.variety import VarietyConfig, vary_colors

ALWAYS = VarietyConfig(colors=1.0, stretch=1.5, more_objects=3)


def rgba(color: tuple[int, int, int]) -> Image.Image:
    pixels = np.full((6, 8, 4), (*color, 255), np.uint8)
    pixels[:2, :, 3] = 0
    pixels[:2, :, :3] = 7  # what is not seen must not count in the mean
    return Image.fromarray(pixels)


def test_fit_and_validation_part_training_by_families() -> None:
    parts = {split: emoji.list_emoji("kinds", split) for split in ("train", "test", "fit", "validation")}
    members = {split: {one.member for one in part} for split, part in parts.items()}
    families = {split: {one.family for one in part} for split, part in parts.items()}
    assert members["fit"] | members["validation"] == members["train"]
    assert not families["fit"] & families["validation"] and not families["test"] & families["train"]
    assert {one.kind for one in parts["validation"]} == {one.kind for one in parts["fit"]} == set(emoji.KINDS)
    assert 0.15 < len(members["validation"]) / len(members["train"]) < 0.25
    config = DataConfig(kind="scenes", num_train=7, num_test=3)
    assert [len(open_data(config, split)) for split in ("train", "fit", "test", "validation")] == [7, 7, 3, 3]
    with pytest.raises(ValueError, match="split is 'val'; scenes have train and test, or fit and validation"):
        open_data(config, "val")


def test_scenes_of_tests_do_not_vary() -> None:
    plain, varied = SceneConfig(resolution=48), SceneConfig(resolution=48, variety=ALWAYS)
    for split in ("test", "validation", "train", "fit"):
        samples = [EmojiScenes(config, split, 8).read(5) for config in (plain, varied)]
        same = np.array_equal(samples[0].image, samples[1].image)
        assert same == (split in ("test", "validation"))


def test_training_scenes_have_more_objects() -> None:
    few, many = (
        EmojiScenes(SceneConfig(resolution=64, variety=VarietyConfig(more_objects=more)), "train", 30)
        for more in (0, 6)
    )
    covered = [np.mean([(data.read(index).labels > 0).mean() for index in range(30)]) for data in (few, many)]
    assert covered[1] > covered[0] + 0.1


def test_a_hue_turns_by_the_angle_and_grey_stays() -> None:
    config = VarietyConfig(colors=1.0, hue=120.0, saturation=(1.0, 1.0), contrast=(1.0, 1.0), brightness=0.0)

    class Most:
        """Draws the largest number of every range."""

        def random(self) -> float:
            return 0.0

        def uniform(self, _: float, high: float) -> float:
            return high

    turned = np.asarray(vary_colors(rgba((180, 60, 60)), config, Most()))  # type: ignore[arg-type]
    hue = colorsys.rgb_to_hsv(*(turned[3, 3, :3] / 255))[0] * 360
    assert min(abs(hue - 120), abs(hue - 240)) < 1
    grey = np.asarray(vary_colors(rgba((90, 90, 90)), config, Most()))  # type: ignore[arg-type]
    assert np.abs(grey[3:, :, :3].astype(int) - 90).max() <= 1


def test_colours_vary_and_alpha_stays() -> None:
    before = rgba((200, 120, 40))
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(20):
        after = np.asarray(vary_colors(before, VarietyConfig(colors=1.0), rng))
        assert np.array_equal(after[..., 3], np.asarray(before)[..., 3])
        seen.add(tuple(after[4, 4, :3]))
    assert len(seen) > 15
    never = vary_colors(before, VarietyConfig(colors=0.0), rng)
    assert np.array_equal(np.asarray(never), np.asarray(before))


def test_contrast_keeps_the_mean_of_what_is_seen() -> None:
    picture = np.array(rgba((100, 100, 100)))
    picture[3:, :4, :3] = 160
    flat = VarietyConfig(colors=1.0, hue=0.0, saturation=(1.0, 1.0), contrast=(0.0, 0.0), brightness=0.0)
    after = np.asarray(vary_colors(Image.fromarray(picture), flat, np.random.default_rng(0)))
    seen = picture[..., 3] > 0
    assert np.abs(after[seen][:, :3] - picture[seen][:, :3].mean()).max() <= 1


def test_stretched_objects_keep_their_area() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([VarietyConfig(stretch=2.0).size(100, rng) for _ in range(200)])
    ratios = sizes[:, 0] / sizes[:, 1]
    assert 0.49 < ratios.min() < 0.6 and 1.7 < ratios.max() < 2.05
    assert np.abs(sizes.prod(1) / 100**2 - 1).max() < 0.03
    assert VarietyConfig().size(33, rng) == (33, 33)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"colors": 1.5}, r"colors is 1.5; it must be in \[0, 1\]"),
        ({"hue": 200.0}, r"hue is 200.0; it must be in \[0, 180\]"),
        ({"saturation": (2.0, 1.0)}, r"saturation is \[2.0, 1.0\]; it must be two numbers"),
        ({"contrast": (-1.0, 1.0)}, "contrast is"),
        ({"brightness": 300.0}, "brightness is 300.0"),
        ({"stretch": 0.5}, r"stretch is 0.5; it must be in \[1, 4\]"),
        ({"more_objects": -1}, "more_objects is -1; it must be at least 0"),
    ],
)
def test_impossible_variety_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VarietyConfig(**given)  # type: ignore[arg-type]

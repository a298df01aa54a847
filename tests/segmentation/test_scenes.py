"""Scenes of emoji: exact labels, nothing of the test in training, made anew at will."""

import hashlib
from collections.abc import Callable

import numpy as np
import pytest

from hamgan.segmentation import emoji, scenes
from hamgan.segmentation.scenes import EmojiScenes, SceneConfig


def plain(value: int) -> Callable[[np.random.Generator, int], np.ndarray]:
    def draw(rng: np.random.Generator, side: int) -> np.ndarray:
        scenes_background(rng, side)  # the same draws as ever
        return np.full((side, side, 3), value, np.uint8)

    return draw


scenes_background = scenes.background


@pytest.mark.parametrize("classes", ["kinds", "groups"])
def test_no_emoji_of_the_test_is_in_training(classes: emoji.Classes) -> None:
    train, test = (emoji.list_emoji(classes, split) for split in ("train", "test"))
    assert not {one.family for one in train} & {one.family for one in test}
    pixels = [{hashlib.sha256(emoji.read_emoji(one).tobytes()).digest() for one in part} for part in (train, test)]
    assert not pixels[0] & pixels[1]
    names = set(emoji.class_names(classes)) - {"background"}
    assert len(names) == 9 and {one.kind for one in train} == {one.kind for one in test} == names
    assert 0.15 < len(test) / (len(train) + len(test)) < 0.25


def test_variants_of_a_person_are_one_family() -> None:
    members = [f"people-and-body/{code}-200d-1f680.webp" for code in ("1f468", "1f469", "1f9d1")]
    assert len({emoji.Emoji(member=member, kind="person").family for member in members}) == 1


def test_a_scene_follows_from_seed_and_index_alone() -> None:
    config = SceneConfig(resolution=64)
    first, again = EmojiScenes(config, "train", 100), EmojiScenes(config, "train", 50)
    first.read(7)
    for index in (3, 12):
        a, b = first.read(index), again.read(index)
        assert np.array_equal(a.image, b.image) and np.array_equal(a.labels, b.labels)
    others = [EmojiScenes(SceneConfig(resolution=64, seed=1), "train", 100), EmojiScenes(config, "test", 100)]
    assert all(not np.array_equal(first.read(3).image, other.read(3).image) for other in others)
    with pytest.raises(IndexError):
        again.read(50)


def test_labels_are_where_objects_hide_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    data = EmojiScenes(SceneConfig(resolution=64), "test", 40)
    monkeypatch.setattr(scenes, "background", plain(0))
    on_black = [data.read(index) for index in range(40)]
    monkeypatch.setattr(scenes, "background", plain(255))
    on_white = [data.read(index) for index in range(40)]
    present: set[int] = set()
    for black, white in zip(on_black, on_white, strict=True):
        assert np.array_equal(black.labels, white.labels)
        shown = (white.image.astype(int) - black.image).max(-1) / 255  # share of the background that is seen
        assert (shown[black.labels > 0] <= 0.51).all()
        assert (shown[black.labels == 0] >= 0.1).all()  # edges of several objects may lie over each other
        present |= set(np.unique(black.labels).tolist())
    assert present == set(range(10))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"resolution": 8}, "resolution is 8"),
        ({"num_objects": (4, 2)}, r"num_objects is \[4, 2\]"),
        ({"sizes": (0.0, 0.5)}, "sizes is"),
        ({"touching": 1.5}, "touching is 1.5"),
    ],
)
def test_impossible_scenes_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SceneConfig(**given)  # type: ignore[arg-type]

"""Scenes of emoji: a segmentation task with exact labels that needs no download.

A scene is a background (a gradient, a texture of noise, or surfaces that overlap as in photographs) and objects in front of
each other, some set so as to touch or overlap the one before. Everything about scene number i of a split follows from the seed
and i, so that a set has as many scenes as are asked for and each can be made anew.
"""

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hamgan.segmentation import emoji
from hamgan.segmentation.dataset import LabelledImages, Sample
from hamgan.segmentation.palettes import distinct_palette
from hamgan.segmentation.variety import VarietyConfig, vary_colors

_SPLITS: tuple[emoji.Split, ...] = ("train", "test", "fit", "validation")
OPAQUE = 128
"""Smallest alpha, of 255, at which a pixel is labelled as the object: it then shows more of it than of what is behind."""


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """What scenes look like."""

    classes: emoji.Classes = "kinds"
    """kinds: nine that can be told by their looks (button, clock, face, flag, hand, heart, person, plant, vehicle); groups:
    the archive's nine groups, which are by use."""
    resolution: int = 96
    """Height and width, pixels."""
    num_objects: tuple[int, int] = (3, 8)
    """Smallest and largest number of objects."""
    sizes: tuple[float, float] = (0.25, 0.6)
    """Smallest and largest side of an object, as a share of the resolution; drawn log-uniformly."""
    touching: float = 0.5
    """Probability that an object is set beside or over the one before, rather than anywhere."""
    rotation: float = 20.0
    """Largest rotation, degrees."""
    seed: int = 0
    """Of all scenes."""
    variety: VarietyConfig = field(default_factory=VarietyConfig)
    """How the objects of training scenes vary."""

    def __post_init__(self) -> None:
        if self.resolution < 32:
            raise ValueError(f"resolution is {self.resolution}; it must be at least 32")
        low, high = self.num_objects
        if not 1 <= low <= high:
            raise ValueError(f"num_objects is {list(self.num_objects)}; it must be two numbers, 1 <= low <= high")
        small, large = self.sizes
        if not 0 < small <= large <= 1:
            raise ValueError(f"sizes is {list(self.sizes)}; it must be two numbers, 0 < small <= large <= 1")
        if not 0 <= self.touching <= 1:
            raise ValueError(f"touching is {self.touching}; it must be in [0, 1]")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation is {self.rotation}; it must be in [0, 180]")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must be in [0, 2**63)")


@dataclass(kw_only=True)
class _Canvas:
    """A scene as it is being composed."""

    image: Image.Image
    labels: NDArray[np.uint8]
    last: tuple[float, float, float] | None = field(default=None)
    """Centre and radius of the last object, pixels."""


class EmojiScenes(LabelledImages):
    """Scenes made of the emoji of one split.

    Args:
        config: What they look like.
        split: train or test, no emoji is in both; or fit or validation, which part train likewise.
        num_scenes: How many there are.
    """

    def __init__(self, config: SceneConfig, split: emoji.Split, num_scenes: int) -> None:
        names = emoji.class_names(config.classes)
        super().__init__(names, distinct_palette(len(names)))
        self.config = config
        self.split: emoji.Split = split
        self._num_scenes = num_scenes
        self._variety = config.variety if split in ("train", "fit") else VarietyConfig()
        self._pictures: dict[str, Image.Image] = {}

    def __len__(self) -> int:
        """Number of scenes."""
        return self._num_scenes

    def name(self, index: int) -> str:
        """Return a scene's name."""
        return f"scene-{self.split}-{index:06d}"

    @property
    def fingerprint(self) -> str:
        """The configuration, the split and the emoji."""
        members = [emoji.member for kind in self._emoji for emoji in kind]
        return hashlib.sha256(repr((self.config, self.split, members)).encode()).hexdigest()

    @cached_property
    def _emoji(self) -> list[list[emoji.Emoji]]:
        """The split's emoji, a list a class; class 1 comes first."""
        found = emoji.list_emoji(self.config.classes, self.split)
        return [[one for one in found if one.kind == name] for name in self.class_names[1:]]

    def read(self, index: int) -> Sample:
        """Compose a scene.

        Raises:
            IndexError: If there is no such scene.
        """
        if not 0 <= index < self._num_scenes:
            raise IndexError(f"scene {index} of {self._num_scenes}")
        rng = np.random.default_rng([self.config.seed, _SPLITS.index(self.split), index])
        side = self.config.resolution
        canvas = _Canvas(image=Image.fromarray(background(rng, side)), labels=np.zeros((side, side), np.uint8))
        low, high = self.config.num_objects
        for _ in range(self._variety.more_objects + rng.integers(low, high + 1)):
            label = int(rng.integers(1, self.num_classes))
            kind = self._emoji[label - 1]
            self._paste(canvas, rng, kind[rng.integers(len(kind))], label)
        return Sample(np.array(canvas.image), canvas.labels)

    def _paste(self, canvas: _Canvas, rng: np.random.Generator, one: emoji.Emoji, label: int) -> None:
        """Put an object in front of all that is there."""
        config = self.config
        small, large = (math.log(size * config.resolution) for size in config.sizes)
        side = max(round(math.exp(rng.uniform(small, large))), 4)
        picture = self._picture(one).resize(self._variety.size(side, rng), Image.Resampling.HAMMING)
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self._variety.colors:
            picture = vary_colors(picture, self._variety, rng)
        picture = picture.rotate(rng.uniform(-config.rotation, config.rotation), Image.Resampling.BILINEAR, expand=True)
        x, y = self._place(canvas, rng, side / 2)
        left, top = round(x - picture.width / 2), round(y - picture.height / 2)
        canvas.image.paste(picture, (left, top), picture)
        opaque = np.asarray(picture.getchannel("A")) >= OPAQUE
        rows = slice(max(top, 0), min(top + picture.height, config.resolution))
        columns = slice(max(left, 0), min(left + picture.width, config.resolution))
        inside = opaque[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        canvas.labels[rows, columns][inside] = label
        canvas.last = (x, y, side / 2)

    def _place(self, canvas: _Canvas, rng: np.random.Generator, radius: float) -> tuple[float, float]:
        """Choose an object's centre, always inside the scene."""
        side = self.config.resolution
        if canvas.last is not None and rng.random() < self.config.touching:
            x, y, other = canvas.last
            angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0.6, 1.0) * (radius + other)
            x, y = x + distance * math.cos(angle), y + distance * math.sin(angle)
            return min(max(x, 0.0), side - 1.0), min(max(y, 0.0), side - 1.0)
        return rng.uniform(0.1, 0.9) * side, rng.uniform(0.1, 0.9) * side

    def _picture(self, one: emoji.Emoji) -> Image.Image:
        if one.member not in self._pictures:
            self._pictures[one.member] = Image.fromarray(emoji.read_emoji(one))
        return self._pictures[one.member]


def background(rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
    """Draw a background, (side, side, 3)."""
    draw = (_gradient, _noise, _surfaces)[rng.integers(3)]
    return np.clip(draw(rng, side), 0, 255).astype(np.uint8)


def _gradient(rng: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Two or three colours along a line, with a little grain."""
    y, x = np.mgrid[:side, :side].astype(np.float32) / side - 0.5
    angle = rng.uniform(0, 2 * math.pi)
    t = np.clip((x * math.cos(angle) + y * math.sin(angle)) / 1.2 + 0.5, 0, 1)
    stops = rng.uniform(0, 255, (int(rng.integers(2, 4)), 3))
    places = np.linspace(0, 1, len(stops))
    ramp = np.stack([np.interp(t, places, stops[:, channel]) for channel in range(3)], -1).astype(np.float32)
    return ramp + rng.standard_normal((side, side, 1), np.float32) * np.float32(rng.uniform(0, 12))


def _noise(rng: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Noise whose amplitude falls with frequency, as that of natural textures does, between two colours."""
    field = np.zeros((side, side), np.float32)
    roughness = rng.uniform(0.4, 0.9)
    for octave in range(5):
        cells = 2 ** (octave + 1)
        grid = Image.fromarray(rng.standard_normal((cells, cells), np.float32))
        field += roughness**octave * np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC))
    t = 0.5 + np.float32(rng.uniform(0.15, 0.35)) * field[..., None]
    a, b = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    return a + np.clip(t, 0, 1) * (b - a)


def _surfaces(rng: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Surfaces in front of each other (dead leaves): discs and bands of their own shade, dimmed towards one side.

    Source: Lee, Mumford & Huang 2001: occlusion of such surfaces gives the statistics of photographs.
    """
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    image = np.broadcast_to(rng.uniform(0, 255, 3).astype(np.float32), (side, side, 3)).copy()
    base = rng.uniform(40, 215, 3)
    for _ in range(rng.integers(8, 25)):
        color = np.clip(base + rng.normal(0, 45, 3), 0, 255).astype(np.float32)
        cx, cy, angle = rng.uniform(-0.1, 1.1), rng.uniform(-0.1, 1.1), rng.uniform(0, math.pi)
        radius = 0.06 * rng.uniform(0.03, 1) ** -0.5
        u = (x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)
        v = (y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)
        inside = u**2 + v**2 < radius**2 if rng.random() < 0.6 else (np.abs(u) < radius / 2) & (np.abs(v) < radius * 2)
        image[inside] = color
    shade = 1 - np.float32(rng.uniform(0, 0.5)) * (x if rng.random() < 0.5 else y)
    return image * shade[..., None] + rng.standard_normal((side, side, 1), np.float32) * 5

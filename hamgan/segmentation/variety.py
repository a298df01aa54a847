"""How the objects of training scenes vary, so that few emoji stand for many: colours and proportions."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_GREY = np.full((3, 3), 1 / 3)
"""Projects a colour onto the grey axis."""
_CROSS = np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]]) / math.sqrt(3)
"""Takes a colour to its cross product with the grey axis."""


@dataclass(frozen=True, kw_only=True)
class VarietyConfig:
    """What is done to an object before it is pasted into a training scene; nothing is done to those of tests."""

    more_objects: int = 0
    """Objects that a training scene has more than one of a test: `num_objects` grows by so many at both ends."""
    colors: float = 0.0
    """Probability that an object's colours are changed, by all of the following; 0: they never are."""
    hue: float = 180.0
    """Largest turn of the hue, degrees."""
    saturation: tuple[float, float] = (0.0, 1.5)
    """Smallest and largest factor of the colours' distance from grey."""
    contrast: tuple[float, float] = (0.6, 1.3)
    """Smallest and largest factor of the distance from the object's mean colour."""
    brightness: float = 40.0
    """Largest addition to all channels, of 255."""
    stretch: float = 1.0
    """Largest ratio by which an object is made wider or narrower, drawn log-uniformly; 1: proportions are kept."""

    def __post_init__(self) -> None:
        if self.more_objects < 0:
            raise ValueError(f"more_objects is {self.more_objects}; it must be at least 0")
        if not 0 <= self.colors <= 1:
            raise ValueError(f"colors is {self.colors}; it must be in [0, 1]")
        if not 0 <= self.hue <= 180:
            raise ValueError(f"hue is {self.hue}; it must be in [0, 180]")
        if not 0 <= self.brightness <= 255:
            raise ValueError(f"brightness is {self.brightness}; it must be in [0, 255]")
        for name in ("saturation", "contrast"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name} is {[low, high]}; it must be two numbers, 0 <= low <= high")
        if not 1 <= self.stretch <= 4:
            raise ValueError(f"stretch is {self.stretch}; it must be in [1, 4]")

    def size(self, side: int, rng: np.random.Generator) -> tuple[int, int]:
        """Draw an object's width and height, pixels, of the same area as a square."""
        if self.stretch == 1:
            return side, side
        ratio = math.exp(rng.uniform(-0.5, 0.5) * math.log(self.stretch))
        return max(round(side * ratio), 4), max(round(side / ratio), 4)


def vary_colors(picture: Image.Image, config: VarietyConfig, rng: np.random.Generator) -> Image.Image:
    """Change the colours of RGBA, with the probability of the configuration; alpha stays."""
    if rng.random() >= config.colors:
        return picture
    pixels = np.array(picture)
    angle, saturation = rng.uniform(-config.hue, config.hue), rng.uniform(*config.saturation)
    colors = pixels[..., :3].astype(np.float32) @ _turn(math.radians(angle), saturation)
    opacity = pixels[..., 3:].astype(np.float32)
    mean = (colors * opacity).sum((0, 1)) / max(float(opacity.sum()), 1.0)
    contrast, offset = rng.uniform(*config.contrast), rng.uniform(-config.brightness, config.brightness)
    pixels[..., :3] = np.clip(mean + contrast * (colors - mean) + offset, 0, 255)
    return Image.fromarray(pixels)


def _turn(angle: float, saturation: float) -> NDArray[np.float32]:
    """Return the map of colours (rows) that turns them about the grey axis and scales their distance from it, (3, 3).

    Source: Rodrigues' formula, about (1, 1, 1).
    """
    turned = math.cos(angle) * (np.eye(3) - _GREY) + math.sin(angle) * _CROSS
    return (_GREY + saturation * turned).astype(np.float32)

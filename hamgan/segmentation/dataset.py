"""What a set of labelled images is: an image, its label map, the names and colours of the classes."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MEAN = (123.675, 116.28, 103.53)
"""What images are normalised with: of the channels red, green and blue, over 0..255 (ImageNet's)."""
STD = (58.395, 57.12, 57.375)
"""Deviation, likewise."""
IGNORED = 255
"""Label of pixels that neither the loss nor a score counts."""
UNKNOWN = -1
"""Entry of a conversion table for raw labels that must not occur."""


class Sample(NamedTuple):
    """An image with its label map."""

    image: NDArray[np.uint8]
    """(H, W, 3), RGB, 0..255."""
    labels: NDArray[np.uint8]
    """(H, W): classes from 0, or `IGNORED`."""


class LabelledImages(ABC):
    """Images with label maps, by index.

    Args:
        class_names: In the order of the labels.
        palette: Colours of the classes, (num_classes, 3), 0..255.
    """

    def __init__(self, class_names: Sequence[str], palette: NDArray[np.uint8]) -> None:
        assert len(class_names) == len(palette) < IGNORED
        self.class_names = tuple(class_names)
        self.palette = palette

    @property
    def num_classes(self) -> int:
        """Number of classes, without the ignored label."""
        return len(self.class_names)

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Return the name of an image, without folder and suffix."""

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Read an image and its labels.

        Raises:
            FileNotFoundError: If one of the two is missing.
            ValueError: If one is unreadable, their sizes differ, or a label is unknown.
        """

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """What tells this set from others, for going on with a run or an evaluation; hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The files of one image."""

    name: str
    image: Path
    mask: Path


def identity_conversion(num_classes: int) -> NDArray[np.int64]:
    """Return the table that keeps labels as they are and knows 255 as ignored, (256,)."""
    conversion = np.full(IGNORED + 1, UNKNOWN, np.int64)
    conversion[:num_classes] = np.arange(num_classes)
    conversion[IGNORED] = IGNORED
    return conversion


MaskReader = Callable[[Path], NDArray[np.integer]]


class PairedFiles(LabelledImages):
    """An image file and a mask file for each image.

    Args:
        pairs: The files, in the data set's order.
        class_names: In the order of the labels.
        palette: Colours of the classes.
        conversion: From a mask's raw label to the class, `IGNORED` or `UNKNOWN`, (number of raw labels,).
        read_mask: Reads a mask file into raw labels (H, W).
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        class_names: Sequence[str],
        palette: NDArray[np.uint8],
        *,
        conversion: NDArray[np.int64],
        read_mask: MaskReader | None = None,
    ) -> None:
        super().__init__(class_names, palette)
        self.pairs = list(pairs)
        self._conversion = conversion
        self._read_mask = read_mask or read_mask_image

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pairs)

    def name(self, index: int) -> str:
        """Return the name of an image."""
        return self.pairs[index].name

    def read(self, index: int) -> Sample:
        """Read an image and its labels; errors name the file."""
        pair = self.pairs[index]
        image = read_image(pair.image)
        if not pair.mask.is_file():
            raise FileNotFoundError(f"{pair.mask}: no mask for {pair.image}")
        raw = self._read_mask(pair.mask)
        if raw.shape != image.shape[:2]:
            raise ValueError(
                f"{pair.mask}: is {raw.shape[0]}x{raw.shape[1]}, its image {pair.image} "
                f"{image.shape[0]}x{image.shape[1]} (height x width); they must agree"
            )
        return Sample(image, self._classes(raw, pair.mask))

    def _classes(self, raw: NDArray[np.integer], path: Path) -> NDArray[np.uint8]:
        table = self._conversion
        if raw.min() >= 0 and raw.max() < len(table):
            classes = table[raw]
            if classes.min() >= 0:
                return classes.astype(np.uint8)
        known = np.flatnonzero(table != UNKNOWN)
        strangers = np.setdiff1d(raw, known)
        raise ValueError(f"{path}: has the unknown label {strangers[0]}; labels are {_ranges(known.tolist())}")

    @property
    def fingerprint(self) -> str:
        """The names, the classes and the label conversion; not the pixels, which would have to be read."""
        digest = hashlib.sha256(repr((self.class_names, self._conversion.tolist())).encode())
        for pair in self.pairs:
            digest.update(f"{pair.name}\n".encode())
        return digest.hexdigest()


def _ranges(values: list[int]) -> str:
    """Write [0, 1, 2, 255] as `0..2, 255`."""
    parts: list[list[int]] = []
    for value in values:
        if parts and parts[-1][1] == value - 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in parts)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image as RGB, (H, W, 3); transparency is dropped, and of 16 bits a channel the lower 8.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded, or its numbers have no known range.
    """
    picture = _open(path, "image")
    if picture.mode.startswith("I;16"):  # Pillow would clip it to 255
        picture = Image.fromarray((np.array(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"{path}: is a picture in {picture.mode}; images have 8 or 16 bits a channel")
    return np.array(picture.convert("RGB"))


def read_mask_image(path: Path) -> NDArray[np.integer]:
    """Read a mask of one channel, or of palette indices, (H, W).

    Raises:
        ValueError: If it cannot be decoded or has colours instead of labels.
    """
    picture = _open(path, "mask")
    if picture.mode not in ("P", "L", "1", "I", "I;16"):
        raise ValueError(f"{path}: is a picture in {picture.mode}; a mask has one channel, of class indices")
    mask = np.array(picture)
    return mask.astype(np.uint8) if mask.dtype == bool else mask


def _open(path: Path, kind: str) -> Image.Image:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such {kind}")
    try:
        picture = Image.open(path)
        picture.load()
    except Exception as error:  # Pillow's readers raise a dozen kinds over a damaged file
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: unreadable {kind} ({reason})") from None
    return picture

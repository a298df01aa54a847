"""From the configuration to labelled images: the published sets as they are downloaded, any pair of folders, or scenes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from hamgan.segmentation import pascal
from hamgan.segmentation.dataset import IGNORED, LabelledImages, Pair, PairedFiles, identity_conversion
from hamgan.segmentation.palettes import ade20k_palette, distinct_palette
from hamgan.segmentation.scenes import EmojiScenes, SceneConfig

DataKind = Literal["ade20k", "pascal_context", "voc", "folders", "scenes"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
CLASS_FILE = "classes.txt"

_ADE20K_SPLITS = {"train": "training", "val": "validation"}
_ADE20K_NAMES = "objectInfo150.txt"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and who reads them."""

    kind: DataKind = "ade20k"
    """ade20k: the folder ADEChallengeData2016. pascal_context: VOCdevkit/VOC2010 with the 59 classes' masks. voc:
    VOCdevkit/VOC2012. folders: images and masks of the same names. scenes: made of emoji, no download."""
    path: str = ""
    """The folder, as it was downloaded; of `folders`: holds images/ and masks/, and, if it has splits, those in folders below
    both."""
    train_split: str = "train"
    """Images to train on. ade20k and pascal_context: train. voc: train, trainaug or trainval. folders: a folder below images/
    and masks/, or empty. scenes: train, or fit, the part of it that is not for validation."""
    test_split: str = "val"
    """Images to test on. ade20k, pascal_context and voc: val. folders: as above. scenes: test, or validation."""
    num_workers: int = 4
    """Processes that read and augment; 0: the one that trains."""
    num_train: int = 100_000
    """Number of scenes to train on."""
    num_test: int = 500
    """Number of scenes to test on."""
    scenes: SceneConfig = field(default_factory=SceneConfig)
    """What scenes look like."""

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ValueError(f"num_workers is {self.num_workers}; it must be at least 0")
        for name in ("num_train", "num_test"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


def open_data(config: DataConfig, split: str) -> LabelledImages:
    """Open a split of a data set.

    Raises:
        FileNotFoundError: If its folder or a part of it is missing.
        ValueError: If there is no such split, or it has no image.
    """
    if config.kind == "scenes":
        match split:
            case "train" | "fit":
                return EmojiScenes(config.scenes, split, config.num_train)
            case "test" | "validation":
                return EmojiScenes(config.scenes, split, config.num_test)
        raise ValueError(f"split is '{split}'; scenes have train and test, or fit and validation, which part train")
    root = Path(config.path).expanduser()
    if not config.path or not root.is_dir():
        raise FileNotFoundError(f"data.path is '{config.path}'; it must be the folder of {config.kind}")
    match config.kind:
        case "ade20k":
            return open_ade20k(root, split)
        case "pascal_context":
            return pascal.open_context(root, split)
        case "voc":
            return pascal.open_voc(root, split)
        case "folders":
            return open_folders(root, split)


def open_ade20k(root: Path, split: str) -> PairedFiles:
    """Open ADEChallengeData2016: images/ and annotations/, training/ and validation/ below; 0 is ignored, k is class k - 1.

    Args:
        root: The folder, or the one that it was unpacked in.
        split: train or val.

    Raises:
        FileNotFoundError: If it is not that folder.
        ValueError: If there is no such split.
    """
    if (root / "ADEChallengeData2016").is_dir():
        root = root / "ADEChallengeData2016"
    if split not in _ADE20K_SPLITS:
        raise ValueError(f"split is '{split}'; ADE20K has {' and '.join(_ADE20K_SPLITS)}")
    folder = _ADE20K_SPLITS[split]
    images = _existing(root / "images" / folder, "ADE20K")
    masks = _existing(root / "annotations" / folder, "ADE20K")
    palette = ade20k_palette()
    conversion = np.array([IGNORED, *range(len(palette))], np.int64)
    return PairedFiles(_pair(images, masks), _ade20k_names(root, len(palette)), palette, conversion=conversion)


def _ade20k_names(root: Path, num_classes: int) -> list[str]:
    """Read the classes' names from the table that comes with the images; the first of several synonyms."""
    table = root / _ADE20K_NAMES
    if not table.is_file():
        return [f"class {label}" for label in range(num_classes)]
    rows = [line.split("\t") for line in table.read_text("utf-8").splitlines()[1:] if line.strip()]
    if len(rows) != num_classes:
        raise ValueError(f"{table}: has {len(rows)} classes; ADE20K has {num_classes}")
    return [row[-1].split(",")[0].strip() for row in rows]


def open_folders(root: Path, split: str) -> PairedFiles:
    """Open images/ and masks/ of the same names; masks hold classes from 0, and 255 where a pixel does not count.

    The classes are named, one a line, in classes.txt beside the two.

    Args:
        root: Where the two lie.
        split: A folder below each of them; empty: none.

    Raises:
        FileNotFoundError: If one of the two or the classes are missing.
        ValueError: If an image has no mask.
    """
    images = _existing(root / "images" / split, "an image and mask folder")
    masks = _existing(root / "masks" / split, "an image and mask folder")
    file = root / CLASS_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{file}: missing; it must name the classes, one a line, class 0 first")
    names = [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
    if not 1 <= len(names) < IGNORED:
        raise ValueError(f"{file}: names {len(names)} classes; there must be 1..{IGNORED - 1}")
    return PairedFiles(
        _pair(images, masks), names, distinct_palette(len(names)), conversion=identity_conversion(len(names))
    )


def _existing(folder: Path, what: str) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; this is not {what}")
    return folder


def _pair(images: Path, masks: Path) -> list[Pair]:
    """Pair the images of a folder, by name, with the masks of another."""
    pairs = []
    for image in list_images(images):
        relative = image.relative_to(images)
        found = _first_file(masks / relative.with_suffix(suffix) for suffix in MASK_SUFFIXES)
        mask = found or masks / relative.with_suffix(MASK_SUFFIXES[0])
        if found is None:
            raise FileNotFoundError(f"{mask}: no mask for {image}")
        pairs.append(Pair(name=relative.with_suffix("").as_posix(), image=image, mask=mask))
    if not pairs:
        raise ValueError(f"{images}: has no image ({', '.join(IMAGE_SUFFIXES)})")
    return pairs


def list_images(folder: Path) -> list[Path]:
    """List the images below a folder, by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _first_file(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)

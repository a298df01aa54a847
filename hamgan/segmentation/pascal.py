"""PASCAL VOC and PASCAL Context as they are downloaded."""

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hamgan.segmentation.dataset import IGNORED, Pair, PairedFiles, identity_conversion, read_mask_image
from hamgan.segmentation.palettes import voc_palette

_VOC_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant "
    "sheep sofa train tvmonitor"
)
_CONTEXT_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow table dog horse motorbike person pottedplant sheep sofa train "
    "tvmonitor bag bed bench book building cabinet ceiling cloth computer cup door fence floor flower food grass ground "
    "keyboard light mountain mouse curtain platform sign plate road rock shelves sidewalk sky snow bedclothes track tree truck "
    "wall water window wood"
)

VOC_CLASSES = tuple(_VOC_NAMES.split())
CONTEXT_CLASSES = tuple(_CONTEXT_NAMES.split())
"""The 59 classes, VOC's twenty first, in the order that the converted masks number them from 1."""

_VOC_SPLITS = ("train", "val", "trainval", "trainaug")
_AUGMENTED = "SegmentationClassAug"
_BOUNDARIES = "dataset/cls"


def open_voc(root: Path, split: str) -> PairedFiles:
    """Open VOC2012: 21 classes with the background; 255, the outlines, is ignored.

    The split trainaug needs the outlines' set of Hariharan et al. 2011 too: either converted, as SegmentationClassAug/, or as
    downloaded, as dataset/cls/*.mat. Without a list of its own it is all that has such a mask and is not in val.

    Args:
        root: VOC2012, VOCdevkit, or the folder that the latter was unpacked in.
        split: train, val, trainval or trainaug.

    Raises:
        FileNotFoundError: If a part is missing.
        ValueError: If there is no such split.
    """
    root = _inside(root, "VOC2012")
    if split not in _VOC_SPLITS:
        raise ValueError(f"split is '{split}'; VOC has {', '.join(_VOC_SPLITS)}")
    lists = root / "ImageSets" / "Segmentation"
    masks, suffix = root / "SegmentationClass", ".png"
    if split == "trainaug":
        masks, suffix = _augmented_masks(root)
    names = _read_list(lists / f"{split}.txt") if split != "trainaug" else _trainaug(lists, masks, suffix)
    fine = root / "SegmentationClass"
    pairs = [_pair(root, name, masks / f"{name}{suffix}", instead=fine / f"{name}.png") for name in names]
    num_classes = len(VOC_CLASSES)
    return PairedFiles(
        pairs,
        VOC_CLASSES,
        voc_palette(num_classes),
        conversion=identity_conversion(num_classes),
        read_mask=partial(read_mask, field="GTcls"),
    )


def _augmented_masks(root: Path) -> tuple[Path, str]:
    if (root / _AUGMENTED).is_dir():
        return root / _AUGMENTED, ".png"
    for above in (root, root.parent, root.parent.parent):
        for place in (above / _BOUNDARIES, above / "benchmark_RELEASE" / _BOUNDARIES):
            if place.is_dir():
                return place, ".mat"
    raise FileNotFoundError(f"{root / _AUGMENTED}: missing, and no {_BOUNDARIES} near it; trainaug needs either")


def _trainaug(lists: Path, masks: Path, suffix: str) -> list[str]:
    if (lists / "trainaug.txt").is_file():
        return _read_list(lists / "trainaug.txt")
    kept_apart = set(_read_list(lists / "val.txt"))
    names = {path.stem for path in masks.glob(f"*{suffix}")} | set(_read_list(lists / "train.txt"))
    return sorted(names - kept_apart)


def open_context(root: Path, split: str) -> PairedFiles:
    """Open PASCAL Context on VOC2010: 59 classes; the background is ignored.

    Masks are SegmentationClassContext/*.png, 0 for the background and k for class k - 1; or the 459 labels as downloaded,
    trainval/*.mat with labels.txt, of which the 59 are picked by name.

    Args:
        root: VOC2010, VOCdevkit, or the folder that the latter was unpacked in.
        split: train or val.

    Raises:
        FileNotFoundError: If a part is missing.
        ValueError: If there is no such split.
    """
    root = _inside(root, "VOC2010")
    if split not in ("train", "val"):
        raise ValueError(f"split is '{split}'; PASCAL Context has train and val")
    converted = root / "SegmentationClassContext"
    if converted.is_dir():
        masks, suffix = converted, ".png"
        conversion = np.array([IGNORED, *range(len(CONTEXT_CLASSES))], np.int64)
    else:
        masks, suffix = _context_labels(root), ".mat"
        conversion = _context_conversion(masks.parent / "labels.txt")
    lists = [root / "ImageSets" / folder / f"{split}.txt" for folder in ("SegmentationContext", "Main")]
    names = _read_list(next((file for file in lists if file.is_file()), lists[-1]))
    pairs = [_pair(root, name, masks / f"{name}{suffix}") for name in names]
    palette = voc_palette(len(CONTEXT_CLASSES) + 1)[1:]
    return PairedFiles(
        pairs, CONTEXT_CLASSES, palette, conversion=conversion, read_mask=partial(read_mask, field="LabelMap")
    )


def _context_labels(root: Path) -> Path:
    for above in (root, root.parent, root.parent.parent):
        if (above / "trainval").is_dir() and (above / "labels.txt").is_file():
            return above / "trainval"
    raise FileNotFoundError(
        f"{root / 'SegmentationClassContext'}: missing, and no trainval/ with labels.txt near it; one of the two is needed"
    )


def _context_conversion(file: Path) -> NDArray[np.int64]:
    """Read lines `number: name` of the 459 labels; a label that is none of the 59 is background."""
    known = {name: label for label, name in enumerate(CONTEXT_CLASSES)}
    rows = [line.split(":", 1) for line in file.read_text("utf-8").splitlines() if ":" in line]
    numbers = {name.replace(" ", ""): int(number) for number, name in ((a.strip(), b.strip()) for a, b in rows)}
    if missing := sorted(set(known) - set(numbers)):
        raise ValueError(f"{file}: lacks the class {missing[0]}; it must name all of the 59 classes")
    conversion = np.full(max(numbers.values()) + 1, IGNORED, np.int64)
    for name, label in known.items():
        conversion[numbers[name]] = label
    return conversion


def _inside(root: Path, name: str) -> Path:
    for place in (root, root / name, root / "VOCdevkit" / name):
        if (place / "JPEGImages").is_dir():
            return place
    raise FileNotFoundError(f"{root}: no JPEGImages in it or in VOCdevkit/{name}; this is not {name}")


def _read_list(file: Path) -> list[str]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such list of images")
    # Lists of ImageSets/Main may have a second column.
    names = [line.split()[0] for line in file.read_text("utf-8").splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{file}: lists no image")
    return names


def _pair(root: Path, name: str, mask: Path, instead: Path | None = None) -> Pair:
    """Return an image's files; the mask `instead` where the other does not exist."""
    if instead is not None and not mask.is_file() and instead.is_file():
        mask = instead
    return Pair(name=name, image=root / "JPEGImages" / f"{name}.jpg", mask=mask)


def read_mask(path: Path, *, field: str) -> NDArray[np.integer]:
    """Read a mask, (H, W); of a MATLAB file the field named: SBD's GTcls.Segmentation, Context's LabelMap."""
    if path.suffix != ".mat":
        return read_mask_image(path)
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ValueError(f"{path}: reading MATLAB masks needs scipy: pip install scipy") from None
    try:
        value = loadmat(path)[field]
        mask = np.asarray(value["Segmentation"][0, 0] if value.dtype.names else value)
    except Exception as error:  # damaged files have it fail in every way that Python knows
        raise ValueError(f"{path}: no mask in it ({field}: {' '.join(str(error).split())[:200]})") from None
    if mask.ndim != 2 or mask.dtype.kind not in "iu" or not mask.size:
        raise ValueError(
            f"{path}: no mask in it ({field} is {mask.dtype} {mask.shape}; whole numbers (H, W) are expected)"
        )
    return mask

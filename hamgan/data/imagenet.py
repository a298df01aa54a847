"""The labels of ImageNet's validation images, in the class order of the training folders."""

import tarfile
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hamgan.data import matfile
from hamgan.data.labels import read_ground_truth

VALIDATION_TAR = "ILSVRC2012_img_val.tar"
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_NUM_CLASSES = 1000


def find_validation_labels(archive: Path) -> Path | None:
    """Return the ground truth or the development kit if it lies beside the validation images."""
    folder = archive.parent
    places = (_GROUND_TRUTH, f"ILSVRC2012_devkit_t12/data/{_GROUND_TRUTH}", _DEVKIT)
    return next((folder / place for place in places if (folder / place).exists()), None)


def read_validation_labels(path: Path, class_names: list[str] | None) -> tuple[NDArray[np.int64], list[str]] | None:
    """Read the ground truth: one number 1..1000 per image, which `meta.mat` beside it translates into WordNet ids.

    The classes are the WordNet ids in sorted order, as in the training folders. Without `meta.mat` they are the
    numbers themselves, in another order than the training folders', unless `class_names` names them.

    Args:
        path: The ground truth file, or the development kit's archive.
        class_names: Names of the numbers 1, 2, ... in that order.

    Returns:
        Class indices, int64 (N,), and class names; None if the file is not of that form.

    Raises:
        ValueError: If a number is out of range or the archive damaged.
    """
    if path.name.endswith((".tar.gz", ".tar")):
        return _from_devkit(path)
    numbers = read_ground_truth(path)
    if numbers is None:
        return None
    meta = path.parent / "meta.mat"
    if class_names is not None:
        names = class_names
    elif meta.exists():
        names = _wordnet_ids(meta)
    else:
        print(f"no meta.mat beside {path}: classes are numbered as there, not as the training folders are")
        return numbers - 1, [str(i + 1) for i in range(_NUM_CLASSES)]
    if numbers.max() > len(names):
        raise ValueError(f"{path}: label {numbers.max()} is outside 1..{len(names)}")
    in_order = sorted(names)
    rank = np.asarray([in_order.index(name) for name in names], np.int64)
    return rank[numbers - 1], in_order


def _from_devkit(path: Path) -> tuple[NDArray[np.int64], list[str]] | None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            with tarfile.open(path, "r:*") as archive:
                for member in archive:
                    name = member.name.rsplit("/", 1)[-1]
                    content = archive.extractfile(member) if name in (_GROUND_TRUTH, "meta.mat") else None
                    if content is not None:
                        (Path(folder) / name).write_bytes(content.read())
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"{path}: unreadable or truncated archive ({error})") from None
        if not (Path(folder) / _GROUND_TRUTH).exists():
            raise ValueError(f"{path}: has no {_GROUND_TRUTH}")
        return read_validation_labels(Path(folder) / _GROUND_TRUTH, None)


def _wordnet_ids(meta: Path) -> list[str]:
    """Return the WordNet ids of the numbers 1..1000."""
    for variable in matfile.variables(meta):
        if variable.name == "synsets":
            try:
                ids = {int(s["ILSVRC2012_ID"].item()): str(s["WNID"]) for s in variable.value()}
            except (TypeError, KeyError, ValueError, AttributeError, OverflowError):  # not a list of structs with these
                break
            if not set(range(1, _NUM_CLASSES + 1)) <= set(ids):
                break
            return [ids[number] for number in range(1, _NUM_CLASSES + 1)]
    raise ValueError(f"{meta}: has no synsets 1..{_NUM_CLASSES}")

"""What generated images are compared with: stored statistics, a training file, and what tells new images from repeated ones."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hamgan import dist
from hamgan.data.hdf5 import TrainingFile
from hamgan.data.subset import hold_out
from hamgan.metrics import (
    HELD_OUT_SPLITS,
    Description,
    Extractor,
    ReaderImages,
    Reference,
    StoredFeatures,
    build_statistics,
    check_dataset,
    load_statistics,
)
from hamgan.training import run_folder


def find_reference(
    source: Path | None,
    extractor: Extractor,
    *,
    data: Path | None,
    statistics: Path | None,
    dataset: str | None = None,
) -> tuple[Reference, TrainingFile | None]:
    """Return what to compare with: stored statistics, or those of a training file; and that file where there is one.

    Args:
        source: A run folder, whose training file is taken where nothing else is named; a snapshot, or None.
        extractor: The feature network.
        data: A training file.
        statistics: Stored statistics, instead.
        dataset: Name of the data set that they must be of; None: that of the training file, where there is one.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If there is nothing, or it cannot be compared with.
    """
    trained_on = None
    if data is None and source is not None and source.is_dir():
        trained_on = Path(run_folder.read_config(source).data.path)
        data = trained_on if statistics is None else None
    file = None if data is None else TrainingFile(data)
    if statistics is not None:
        reference = load_statistics(statistics)
        _check_dataset(reference, dataset, trained_on if file is None else file.path)
        return reference, file
    if file is None:
        raise ValueError("nothing to compare with; name the training file (--data) or stored statistics (--reference)")
    return reference_of(file, extractor), file


def _check_dataset(reference: Reference, dataset: str | None, training: Path | None) -> None:
    meta = reference.meta
    if dataset is not None:
        check_dataset(reference, dataset=dataset)
        return
    if training is None or meta is None or meta.split in HELD_OUT_SPLITS:
        return
    # Statistics of the folder that the file was built from have another fingerprint: the name decides.
    if meta.dataset not in (None, training.stem) and not _is_of(meta.fingerprint, training):
        raise ValueError(
            f"{reference.path}: statistics of {meta.dataset!r}, but training was on {training}; "
            f"if they are meant: --dataset {meta.dataset}"
        )


def _is_of(fingerprint: str | None, training: Path) -> bool:
    return training.is_file() and TrainingFile(training).fingerprint == fingerprint


def reference_of(data: TrainingFile, extractor: Extractor) -> Reference:
    """Return the stored statistics of a training file, `<file>.<extractor>-<protocol>.npz` beside it, built if absent.

    Raises:
        ValueError: If what is stored is of other images, or cannot be built.
        OSError: If it cannot be written.
    """
    path = data.path.with_name(f"{data.path.stem}.{extractor.name}-{extractor.protocol}.npz")
    if not path.is_file():
        dist.print0(f"building the statistics of {data.path} in {path}")
        build_statistics(
            ReaderImages(data), extractor, path, description=Description(dataset=data.path.stem, split="train")
        )
    dist.barrier()
    reference = load_statistics(path)
    if reference.meta is not None and reference.meta.fingerprint not in (None, data.fingerprint):
        raise ValueError(
            f"{path}: statistics of other images than {data.path} now holds; move the file away to build anew"
        )
    return reference


@dataclass(frozen=True, kw_only=True)
class Newness:
    """What tells a new image from a repeated one; see `metrics.evaluate`."""

    train: StoredFeatures | None = None
    heldout: StoredFeatures | None = None
    unseen: NDArray[np.int64] | None = None


def find_newness(
    source: Path | None, extractor: Extractor, reference: Reference, file: TrainingFile | None, *, is_training_set: bool
) -> Newness:
    """Return the features of training images and of images that training never showed, as far as they are at hand.

    Args:
        source: A run folder, whose held-out images are known; a snapshot, or None.
        extractor: The feature network.
        reference: What is compared with.
        file: The training file; None where it was not named.
        is_training_set: Whether the reference is of that file; if not, and it is of a validation split, its images are the
            held-out ones, and the training file's features are taken, computed once where they are not stored.
    """
    if file is None:
        return Newness()
    if is_training_set:
        if source is None or not source.is_dir():
            return Newness()
        config = run_folder.read_config(source)
        if Path(config.data.path) != file.path or not config.data.hold_out:
            return Newness()
        return Newness(unseen=hold_out(file, config.data.hold_out, config.seed)[1].indices)
    if reference.meta is None or reference.meta.split not in HELD_OUT_SPLITS:
        return Newness()
    return Newness(train=reference_of(file, extractor).features(), heldout=reference.features())

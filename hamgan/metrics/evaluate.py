"""One pass over the images, every number from it, and a card that says what they depend on."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hamgan import dist
from hamgan.metrics.card import Card
from hamgan.metrics.collect import Collected, collect, together
from hamgan.metrics.extractors.base import Extractor
from hamgan.metrics.inception_score import InceptionScore
from hamgan.metrics.measure import Measurement
from hamgan.metrics.protocols import EvaluationSettings, Protocol
from hamgan.metrics.reference import HELD_OUT_SPLITS, Reference, StoredFeatures, check_comparable, now, versions
from hamgan.metrics.sources import ArrayImages, ChosenImages, DrawnImages, ImageSource, IntArray, SequentialImages

Labelled = tuple[Tensor, IntArray | Tensor | None]
Images = ImageSource | Tensor | Callable[[IntArray], Labelled] | Iterable[Tensor | Labelled]


def evaluate(
    images: Images,
    reference: Reference,
    extractor: Extractor,
    *,
    settings: EvaluationSettings | None = None,
    protocol: Protocol | None = None,
    train: StoredFeatures | None = None,
    heldout: StoredFeatures | None = None,
    unseen: IntArray | None = None,
    provenance: Mapping[str, Any] | None = None,
    work_dir: Path | None = None,
    progress: bool = True,
) -> Card:
    """Evaluate images against a reference.

    Run under torchrun, the processes share the images; every one returns the same card, equal to that of a process
    run alone. With a work folder, a killed evaluation goes on where it was.

    Args:
        images: A source; all images as one uint8 tensor (N, 3, H, W); a function from image numbers (B,) to uint8
            images (B, 3, H, W) and class indices or None; or an iterable of batches (images, or images and classes),
            which serves one process.
        reference: From `load_statistics`.
        extractor: As the reference was built with.
        settings: What to compute; None takes the protocol's, or the defaults. `num_images` is needed unless a source
            knows its number.
        protocol: Checked against extractor, reference and settings, and named on the card; None for none.
        train: Features of the training images, for memorisation; None takes the reference's, unless it is of a
            validation or test split.
        heldout: Features of real images that were not trained on, which say how near new images lie.
        unseen: Numbers of training images that were kept from training, (U,); they serve where `heldout` is None.
        provenance: Plain values to print on the card: snapshot, EMA, batch-norm mode, truncation, seeds, ...
        work_dir: Where partial results lie, left in place for the caller to remove; None keeps none. The images then
            need a fingerprint, so that the partial results of others are not taken up.
        progress: Show bars with the time left, on rank 0.

    Returns:
        The card.

    Raises:
        ValueError: If images and reference cannot be compared, an image is bad, or settings do not fit.
    """
    if settings is None:
        settings = EvaluationSettings() if protocol is None else protocol.settings
    if protocol is not None:
        protocol.check(extractor, reference, settings)
    source = as_source(images, settings.num_images)
    settings = replace(settings, num_images=source.num_images)
    warnings = check_comparable(reference, extractor, None)
    _check_class_names(source, reference)
    if not isinstance(source, SequentialImages):
        height, width = source(np.array([0])).images.shape[2:]  # a wrong resolution shows before hours are spent
        check_comparable(reference, extractor, height if height == width else None)
    score = None
    if settings.inception_splits and extractor.num_classes is not None:
        score = InceptionScore(source.num_images, splits=settings.inception_splits, shuffle_seed=settings.shuffle_seed)
    collected = collect(
        source,
        extractor,
        score=score,
        batch_size=settings.batch_size,
        chunk_size=settings.chunk_size,
        work_dir=work_dir,
        progress=progress,
    )
    card = Card()
    with together():
        if collected is not None:
            side = collected.height if collected.height == collected.width else None
            check_comparable(reference, extractor, side)
            numbers = np.empty(0, np.int64) if unseen is None else unseen
            card = _measure(collected, reference, extractor, source, settings, train, heldout, numbers, progress)
            card.warnings[:0] = warnings
            card.depends_on = _dependencies(
                collected, reference, extractor, source, settings, protocol, provenance or {}
            )
    return dist.from_rank0(card)


def as_source(images: Images, num_images: int | None) -> ImageSource:
    """Make a source of what the caller has; of a source that holds more images, a random part.

    Raises:
        ValueError: If the number of images is unknown, or larger than what a source holds.
    """
    if isinstance(images, Tensor):
        images = ArrayImages(images)
    if isinstance(images, ImageSource):
        if num_images is None or num_images == images.num_images:
            return images
        if num_images > images.num_images:
            raise ValueError(f"num_images = {num_images}, but the source holds {images.num_images}")
        if isinstance(images, DrawnImages | SequentialImages):
            raise ValueError(f"num_images = {num_images}, but the images were announced as {images.num_images}")
        return ChosenImages(images, num_images)
    if num_images is None:
        raise ValueError("num_images: needed for images from a function or an iterable")
    return DrawnImages(images, num_images) if callable(images) else SequentialImages(images, num_images)


def _check_class_names(source: ImageSource, reference: Reference) -> None:
    names = None if reference.meta is None else reference.meta.class_names
    if names is None or source.class_names is None:
        return
    for label, (stored, own) in enumerate(zip(names, source.class_names)):
        if stored != own:
            raise ValueError(f"{reference.path}: class {label} is {stored!r}, but the images call it {own!r}")
    if len(names) != len(source.class_names):
        raise ValueError(f"{reference.path}: {len(names)} classes, but the images have {len(source.class_names)}")


def _measure(
    collected: Collected,
    reference: Reference,
    extractor: Extractor,
    source: ImageSource,
    settings: EvaluationSettings,
    train: StoredFeatures | None,
    heldout: StoredFeatures | None,
    unseen: IntArray,
    progress: bool,
) -> Card:
    real = reference.features()
    split = None if reference.meta is None else reference.meta.split
    names = source.class_names or (None if reference.meta is None else reference.meta.class_names)
    measurement = Measurement(
        extractor=extractor.name,
        collected=collected,
        reference=reference,
        real=real,
        train=real if train is None and split not in HELD_OUT_SPLITS else train,
        heldout=heldout,
        unseen=unseen,
        class_names=names,
        settings=settings,
        device=extractor.device,
    )
    return measurement.run(progress=progress)


def _dependencies(
    collected: Collected,
    reference: Reference,
    extractor: Extractor,
    source: ImageSource,
    settings: EvaluationSettings,
    protocol: Protocol | None,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    meta = reference.meta
    described: dict[str, Any] = {"path": str(reference.path), "n": reference.moments.n, "verified": meta is not None}
    if meta is not None:
        kept = ("dataset", "split", "resolution", "crop", "filter", "fingerprint", "date", "versions")
        described |= {key: value for key, value in asdict(meta).items() if key in kept}
    labels = None if collected.labels is None else np.bincount(collected.labels).tolist()
    return {
        "protocol": {} if protocol is None else {"name": protocol.name, "note": protocol.note},
        "extractor": {**extractor.identity, "dim": extractor.dim},
        "reference": described,
        "images": {
            "num_images": source.num_images,
            "height": collected.height,
            "width": collected.width,
            "fingerprint": source.fingerprint,
            "class_counts": labels,
        },
        "settings": asdict(settings),
        "provenance": dict(provenance),
        "versions": versions(),
        "device": str(extractor.device),
        "date": now(),
    }

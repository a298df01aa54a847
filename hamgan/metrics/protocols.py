"""What an evaluation does, and the published protocols as named presets of it."""

from dataclasses import dataclass, field, replace
from typing import Any

from hamgan.metrics.extractors.base import Extractor
from hamgan.metrics.reference import Reference


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Which numbers are computed, from how many images."""

    num_images: int | None = None
    """Images to evaluate; None takes all of a source that knows its number."""
    batch_size: int = 64
    """Images extracted at once."""
    chunk_size: int = 256
    """Images a unit of work and of resuming; a multiple of the batch size avoids small batches."""
    inception_splits: int = 10
    """Splits of the Inception Score; 0 leaves it out."""
    shuffle_seed: int | None = 2020
    """Order of the images for the Inception Score; None keeps theirs."""
    frechet_groups: int = 10
    """Groups left out in turn for the Frechet distance's error and bias; 0 leaves them out."""
    frechet_points: int = 15
    """Points of the curve that is extrapolated to infinitely many images; 0 leaves it out."""
    kernel_images: int = 10_000
    """Images of each side for the kernel distance, at most; 0 leaves it out."""
    neighbour_images: int = 10_000
    """Images of each side for precision, recall, density and coverage, at most; 0 leaves them out."""
    neighbours: int = 5
    """Neighbour k that sets the radius of a ball."""
    per_class: bool = True
    """Compute Frechet distance and accuracy for each class, where both sides have labels."""
    memorisation_images: int = 10_000
    """Generated images compared with the training images, at most; 0 leaves it out."""
    memorisation_train: int = 100_000
    """Training images compared with, at most."""
    seed: int = 2020
    """Of every random choice above that names no own seed."""

    def __post_init__(self) -> None:
        for key in ("batch_size", "chunk_size", "neighbours", "memorisation_train"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} = {getattr(self, key)}: expected at least 1")
        for key in ("inception_splits", "kernel_images", "neighbour_images", "memorisation_images"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} = {getattr(self, key)}: expected at least 0")
        for key in ("frechet_groups", "frechet_points"):
            if getattr(self, key) < 0 or getattr(self, key) == 1:
                raise ValueError(f"{key} = {getattr(self, key)}: expected 0 or at least 2")
        if self.num_images is not None and self.num_images < 2:
            raise ValueError(f"num_images = {self.num_images}: expected at least 2")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A published way to evaluate, whose numbers may be set beside each other."""

    name: str
    """As on the command line."""
    extractor: str
    """Feature network."""
    input_protocol: str
    """Input pipeline of the extractor."""
    reference_split: str | None
    """Split that the reference must be of; None accepts any."""
    settings: EvaluationSettings = field(default_factory=EvaluationSettings)
    """Everything else."""
    labels: str = "uniform"
    """How the classes of generated images are drawn."""
    note: str = ""
    """What a reader should know before comparing."""

    def check(self, extractor: Extractor, reference: Reference, settings: EvaluationSettings) -> None:
        """Refuse what would not be this protocol.

        Raises:
            ValueError: If extractor, input pipeline, reference split, number of images or splits differ.
        """
        wanted: dict[str, tuple[Any, Any]] = {
            "extractor": (extractor.name, self.extractor),
            "input protocol": (extractor.protocol, self.input_protocol),
            "num_images": (settings.num_images, self.settings.num_images),
            "inception_splits": (settings.inception_splits, self.settings.inception_splits),
        }
        if self.reference_split is not None and reference.meta is not None:
            wanted["split of the reference"] = (reference.meta.split, self.reference_split)
        for key, (value, expected) in wanted.items():
            if expected is not None and value != expected:
                raise ValueError(f"protocol {self.name}: {key} = {value!r}, expected {expected!r}")


PROTOCOLS: dict[str, Protocol] = {
    "biggan": Protocol(
        name="biggan",
        extractor="inception",
        input_protocol="tf1",
        reference_split="train",
        settings=EvaluationSettings(num_images=50_000),
        note="Reference: the whole training set. 50,000 images, classes drawn uniformly; Inception Score of 10 splits. "
        "As BigGAN, StudioGAN, mmgeneration and ADM report.",
    ),
    "hamgan": Protocol(
        name="hamgan",
        extractor="inception",
        input_protocol="tf1",
        reference_split="validation",
        settings=EvaluationSettings(num_images=49 * 1024, inception_splits=1, shuffle_seed=None),
        note="Reference: the validation set, cut and resized without antialiasing (the official one draws 49 x 1024 of "
        "its 50,000, so some twice). 49 x 1024 generated images, classes uniform; Inception Score of one split. As the "
        "official HamGAN reports, which however feeds unquantised images; here they pass through uint8.",
    ),
    "embedded": Protocol(
        name="embedded",
        extractor="efficientnet_lite0",
        input_protocol="bicubic224",
        reference_split=None,
        note="Needs no download. Its numbers are named after their extractor and are not FID.",
    ),
}

# What training asks of itself every so often: one distance of each kind, in seconds.
QUICK = replace(
    EvaluationSettings(),
    frechet_groups=0,
    frechet_points=0,
    kernel_images=2_000,
    neighbour_images=2_000,
    per_class=False,
    memorisation_images=0,
)

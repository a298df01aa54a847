"""From a run, a snapshot or images to an evaluation card: what joins `metrics` with snapshots, data and sampling."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hamgan import dist, model_card, snapshot
from hamgan.comparison import Newness, find_newness, find_reference
from hamgan.data.hdf5 import TrainingFile
from hamgan.metrics import (
    PROTOCOLS,
    Card,
    Description,
    DrawnImages,
    EvaluationSettings,
    Extractor,
    FolderImages,
    ImageSource,
    Protocol,
    ReaderImages,
    Reference,
    build_statistics,
    draw_picture,
    evaluate,
    load_extractor,
    load_npz_images,
)
from hamgan.sampling.draw import DrawsImages, draw_images
from hamgan.sampling.store import fingerprint

Labels = Literal["data", "uniform"]


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """What is measured against what."""

    protocol: str = "embedded"
    """A name of `hamgan.metrics.PROTOCOLS`; unused where `extractor` is given."""
    extractor: str | None = None
    """A feature network of `hamgan.metrics.EXTRACTORS`, outside any published protocol."""
    input_protocol: str | None = None
    """That network's input pipeline; None: its own default."""
    num_images: int | None = None
    """Generated images; None: the protocol's, or as many as the reference has, at least 1,920."""
    labels: Labels = "uniform"
    """Classes of the generated images: uniform, or drawn from the data's."""
    truncation: float | None = None
    """BigGAN's, as in `sampling.latents`."""
    z_scale: float = 1.0
    """What latents are multiplied by, likewise."""
    batch_norm: snapshot.BatchNormMode = "auto"
    """Which statistics batch norm takes, as in `Snapshot.at`."""
    weights: Path | None = None
    """The extractor's weights, where they are not found by themselves."""
    device: torch.device
    """Where the extractor runs."""

    def __post_init__(self) -> None:
        if self.num_images is not None and self.num_images < 2:
            raise ValueError(f"--num-images is {self.num_images}; it must be at least 2")


def load_protocol(plan: EvaluationPlan) -> tuple[Protocol | None, Extractor]:
    """Return a plan's protocol, None where it names an extractor of its own, and the extractor.

    Raises:
        ValueError: If the protocol or the extractor is unknown, or the extractor's weights are missing.
    """
    if plan.extractor is not None:
        return None, load_extractor(
            plan.extractor, protocol=plan.input_protocol, weights=plan.weights, device=plan.device
        )
    if plan.protocol not in PROTOCOLS:
        raise ValueError(f"--protocol is '{plan.protocol}'; allowed are {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[plan.protocol]
    extractor = load_extractor(
        protocol.extractor, protocol=protocol.input_protocol, weights=plan.weights, device=plan.device
    )
    return protocol, extractor


def chosen_labels(count: int, labels: Labels, num_classes: int, data_labels: np.ndarray | None) -> np.ndarray:
    """Return the class of each generated image, int64 (count,): the same for the same arguments.

    Raises:
        ValueError: If the data's labels are asked for and there are none.
    """
    if labels == "uniform":
        return np.arange(count) % num_classes
    if data_labels is None:
        raise ValueError("--labels is data; that needs the training file: --data FILE")
    return np.random.RandomState(2020).permutation(np.resize(data_labels, count))


def generated_images(
    G: DrawsImages,
    class_names: tuple[str, ...],
    labels: np.ndarray,
    truncation: float | None,
    z_scale: float = 1.0,
) -> DrawnImages:
    """Return a generator's images by number: number i is drawn from seed i and class labels[i].

    Args:
        G: In evaluation mode.
        class_names: Name of each class; may be empty.
        labels: Class of each image.
        truncation: As in `sampling.latents`.
        z_scale: Likewise.
    """

    def draw(indices: np.ndarray) -> tuple[Tensor, np.ndarray]:
        return draw_images(G, indices.tolist(), labels[indices].tolist(), truncation, z_scale), labels[indices]

    # Partial results of other weights, statistics or latents are not taken up.
    digest = hashlib.sha256(f"{fingerprint(G)} {truncation} {z_scale} ".encode() + labels.tobytes()).hexdigest()
    return DrawnImages(draw, len(labels), class_names=class_names or None, fingerprint=digest)


def evaluate_images(
    images: ImageSource,
    plan: EvaluationPlan,
    reference: Reference,
    protocol: Protocol | None,
    extractor: Extractor,
    out: Path,
    *,
    provenance: dict[str, Any],
    training: ImageSource | None,
    newness: Newness | None = None,
) -> Card:
    """Evaluate images and write `card.json`, `card.txt` and `card.png` into a folder.

    Args:
        images: By number.
        plan: What is measured.
        reference: Against what.
        protocol: The plan's, or None.
        extractor: The plan's.
        out: The folder; partial results lie in it until the card is written, so that a killed evaluation goes on.
        provenance: Plain values to print on the card.
        training: The training images, for the picture of nearest neighbours.
        newness: What memorisation is told by; None: the reference is the training set.

    Returns:
        The card.

    Raises:
        ValueError: If images and reference cannot be compared.
        OSError: If the folder cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    settings = EvaluationSettings() if protocol is None else protocol.settings
    if settings.num_images not in (None, images.num_images):
        protocol = None  # another number of images is another protocol; the card then names none
    settings = replace(settings, num_images=images.num_images)
    work = out / "partial"
    newness = newness or Newness()
    card = evaluate(
        images,
        reference,
        extractor,
        settings=settings,
        protocol=protocol,
        train=newness.train,
        heldout=newness.heldout,
        unseen=newness.unseen,
        provenance=provenance,
        work_dir=work,
    )
    if dist.is_main():
        card.write(out)
        draw_picture(card, out / "card.png", images, training=training)
        for path in sorted(work.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        if work.is_dir():
            work.rmdir()
    return card


def default_count(plan: EvaluationPlan, protocol: Protocol | None, reference: Reference) -> int:
    """Return how many images a plan generates."""
    if asked := plan.num_images or (protocol and protocol.settings.num_images):
        return asked
    return max(min(reference.moments.n or 0, 50_000), 1920)


def run_evaluation(
    plan: EvaluationPlan,
    *,
    source: Path | None,
    images: Path | None,
    npz: Path | None,
    data: Path | None,
    statistics: Path | None,
    out: Path | None,
    dataset: str | None = None,
) -> str:
    """Evaluate what `hamgan eval` names and write the card.

    Args:
        plan: What is measured.
        source: A run folder or a snapshot.
        images: A folder of images instead.
        npz: An archive of images instead.
        data: The training file to compare with; None: the run's own, where `source` is a run.
        statistics: Stored statistics to compare with, instead of a training file.
        dataset: Name of the data set that the statistics must be of; None: that of the training file, if known.
        out: Folder of the card; None: beside the snapshot, or `eval`.

    Returns:
        The card as a table, and where it lies.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If there is nothing to compare with, or what there is cannot be compared.
    """
    protocol, extractor = load_protocol(plan)
    reference, file = find_reference(source, extractor, data=data, statistics=statistics, dataset=dataset)
    judged: ImageSource
    if source is None:
        judged = FolderImages(images) if images is not None else load_npz_images(npz or Path())
        details: dict[str, Any] = {"images": str(images or npz)}
        folder = out or Path("eval")
    else:
        path = snapshot.find(source)
        judged, details = _drawn(path, plan, protocol, reference, file)
        level = "" if plan.truncation is None else f"-truncation{plan.truncation:g}"
        folder = out or path.parent / f"eval-{path.stem}-{plan.extractor or plan.protocol}{level}"
    newness = find_newness(source, extractor, reference, file, is_training_set=statistics is None)
    known = file is not None and (statistics is None or newness.train is not None)
    card = evaluate_images(
        judged,
        plan,
        reference,
        protocol,
        extractor,
        folder,
        provenance=details,
        training=ReaderImages(file) if file is not None and known else None,
        newness=newness,
    )
    if source is not None and out is None and dist.is_main():
        model_card.write(path)
    return f"{card.table()}\n{folder}: card.json, card.txt, card.png"


def _drawn(
    path: Path, plan: EvaluationPlan, protocol: Protocol | None, reference: Reference, data: TrainingFile | None
) -> tuple[DrawnImages, dict[str, Any]]:
    """Return a snapshot's images by number, and what the card says of them."""
    shot = snapshot.read(path)
    shot.generator.to(plan.device)
    ready = shot.at(plan.truncation, plan.batch_norm)
    if ready.warning:
        dist.print0(f"warning: {path}: {ready.warning}")
    G = ready.generator
    count = default_count(plan, protocol, reference)
    labels = chosen_labels(count, plan.labels, G.config.num_classes, None if data is None else data.labels)
    details = shot.provenance | {
        "snapshot": path.name,
        "labels": plan.labels,
        "seeds": f"0-{count - 1}",
        "truncation": plan.truncation or "none",
        "weights": "the snapshot's (EMA)",
        "z_scale": plan.z_scale,
        "batch norm": ready.batch_norm,
    }
    return generated_images(G, shot.class_names, labels, plan.truncation, plan.z_scale), details


def build_reference(
    images: Path,
    out: Path,
    *,
    extractor: str,
    protocol: str | None,
    weights: Path | None,
    dataset: str | None,
    split: str | None,
    resolution: int | None,
    device: torch.device,
) -> str:
    """Store the statistics of a training file or of a folder of images; return a line that says of what.

    Raises:
        FileNotFoundError: If there is neither.
        ValueError: If an image is bad or the extractor's weights are missing.
    """
    network = load_extractor(extractor, protocol=protocol, weights=weights, device=device)
    source: ImageSource
    if images.is_dir():
        source = FolderImages(images, resolution=resolution)
    else:
        file = TrainingFile(images)
        if resolution not in (None, file.resolution):
            raise ValueError(
                f"--resolution is {resolution}; {images} holds {file.resolution}; only folders are resized"
            )
        source = ReaderImages(file)
    build_statistics(source, network, out, description=Description(dataset=dataset or images.stem, split=split))
    return f"{out}: {source.num_images} images of {images}, {network.name}, protocol {network.protocol}"

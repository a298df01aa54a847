"""The trade-off that truncation makes: Inception Score against Frechet distance, level by level."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure

from hamgan import dist, snapshot
from hamgan.checkpoint import write_atomically
from hamgan.comparison import find_reference
from hamgan.data.hdf5 import TrainingFile
from hamgan.evaluation import (
    EvaluationPlan,
    chosen_labels,
    default_count,
    generated_images,
    load_protocol,
)
from hamgan.metrics import Card, EvaluationSettings, Extractor, Reference, evaluate

DPI = 110


@dataclass(frozen=True, kw_only=True)
class Point:
    """One level of a sweep."""

    truncation: float | None
    """None: the plain normal."""
    batch_norm: str
    """Which statistics batch norm used."""
    num_images: int
    """Images measured."""
    score: float
    """Inception Score, by the extractor's classifier."""
    score_deviation: float | None
    """Over its splits."""
    distance: float
    """Frechet distance."""
    distance_error: float | None
    """Its standard error."""


COLUMNS = ("truncation", "batch_norm", "num_images", "score", "score_deviation", "distance", "distance_error")


def sweep(
    source: Path,
    truncations: Sequence[float | None],
    plan: EvaluationPlan,
    *,
    data: Path | None = None,
    statistics: Path | None = None,
    dataset: str | None = None,
    out: Path | None = None,
) -> str:
    """Measure a snapshot at each truncation; write `sweep.csv` and `sweep.png` after each.

    A level that is done has a card in the folder and is not measured again, nor is a part of one; hence a killed sweep goes
    on, and more levels can be added to one.

    Args:
        source: A snapshot, or a run folder, whose newest is taken.
        truncations: Levels; None: the plain normal.
        plan: As for an evaluation; its truncation is not used.
        data: The training file to compare with; None: the run's own.
        statistics: Stored statistics to compare with, instead.
        dataset: Name of the data set that they must be of; None: that of the training file, if known.
        out: The folder; None: `sweep-<snapshot>` beside the snapshot.

    Returns:
        A table of the levels, and where it lies.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If there is nothing to compare with, the extractor has no classifier, or the folder is another sweep's.
    """
    protocol, extractor = load_protocol(plan)
    if extractor.num_classes is None:
        raise ValueError(f"extractor {extractor.name} has no classifier, hence no Inception Score to draw")
    reference, file = find_reference(source, extractor, data=data, statistics=statistics, dataset=dataset)
    path = snapshot.find(source)
    shot = snapshot.read(path)
    shot.generator.to(plan.device)
    count = default_count(plan, protocol, reference)
    base = EvaluationSettings() if protocol is None else protocol.settings
    settings = replace(
        base,
        num_images=count,
        frechet_points=0,
        kernel_images=0,
        neighbour_images=0,
        per_class=False,
        memorisation_images=0,
    )
    folder = out or path.parent / f"sweep-{path.stem}"
    points = []
    for truncation in dict.fromkeys(truncations):
        points.append(_measure(shot, truncation, plan, settings, extractor, reference, file, folder))
        if dist.is_main():
            _write(folder, points, extractor.name, path.name)
    return f"{_table(points)}\n{folder}: sweep.csv, sweep.png"


def _measure(
    shot: snapshot.Snapshot,
    truncation: float | None,
    plan: EvaluationPlan,
    settings: EvaluationSettings,
    extractor: Extractor,
    reference: Reference,
    file: TrainingFile | None,
    folder: Path,
) -> Point:
    """Measure one level, or take it from its card."""
    ready = shot.at(truncation, plan.batch_norm)
    name = "none" if truncation is None else f"{truncation:g}"
    if ready.warning:
        dist.print0(f"warning: {ready.warning}")
    count = settings.num_images or 0
    labels = chosen_labels(count, plan.labels, shot.generator.config.num_classes, None if file is None else file.labels)
    images = generated_images(ready.generator, shot.class_names, labels, truncation, plan.z_scale)
    level = folder / f"truncation-{name}"
    card = _stored(level / "card.json", images.fingerprint, reference, extractor)
    if card is None:
        dist.print0(f"truncation {name}: {count} images, batch norm with the {ready.batch_norm}")
        provenance = shot.provenance | {"truncation": name, "z_scale": plan.z_scale, "batch norm": ready.batch_norm}
        work = level / "partial"
        card = evaluate(images, reference, extractor, settings=settings, provenance=provenance, work_dir=work)
        if dist.is_main():
            card.write(level)
            for path in sorted(work.rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
            work.rmdir()
        dist.barrier()
    score = next(number for key, number in card.numbers.items() if key.startswith("is"))
    distance = next(number for key, number in card.numbers.items() if key.startswith(("fid", "fd")))
    return Point(
        truncation=truncation,
        batch_norm=ready.batch_norm,
        num_images=count,
        score=score.value,
        score_deviation=score.uncertainty,
        distance=distance.value,
        distance_error=distance.uncertainty,
    )


def _stored(path: Path, fingerprint: str | None, reference: Reference, extractor: Extractor) -> Card | None:
    """Return the card of a level that was measured before; None where there is none.

    Raises:
        ValueError: If it is of other images, another reference or another extractor.
    """
    if not path.is_file():
        return None
    try:
        card = Card.from_json(json.loads(path.read_text("utf-8")))
        depends = card.depends_on
        begun = (depends["images"]["fingerprint"], depends["reference"]["n"], depends["extractor"]["weights_sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a card of a sweep ({error}); remove it") from None
    if begun != (fingerprint, reference.moments.n, extractor.weights_sha256):
        raise ValueError(f"{path}: of other images, another reference or extractor; choose another --out")
    return card


def _write(folder: Path, points: Sequence[Point], extractor: str, name: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for point in points:
        values = ["none" if point.truncation is None else point.truncation]
        values += ["" if (value := getattr(point, key)) is None else value for key in COLUMNS[1:]]
        writer.writerow(values)
    write_atomically(folder / "sweep.csv", lambda file: file.write(text.getvalue().encode()))
    picture = io.BytesIO()
    draw_curve(points, extractor, name).savefig(picture, format="png", dpi=DPI, metadata={"Software": "hamgan"})
    write_atomically(folder / "sweep.png", lambda file: file.write(picture.getvalue()))


def draw_curve(points: Sequence[Point], extractor: str, name: str) -> Figure:
    """Draw the curve, each level with its uncertainties and its truncation written beside it.

    Args:
        points: In the order of the curve.
        extractor: Its name; only Inception's distance is called FID.
        name: Of the snapshot.
    """
    figure = Figure(figsize=(6.6, 4.8), dpi=DPI, facecolor="white", layout="constrained")
    place = figure.add_subplot()
    scores, distances = [point.score for point in points], [point.distance for point in points]
    place.errorbar(
        scores,
        distances,
        xerr=[point.score_deviation or 0 for point in points],
        yerr=[point.distance_error or 0 for point in points],
        color="#18181b",
        ecolor="#d4d4d8",
        elinewidth=1.5,
        linewidth=1.5,
        marker="o",
        markersize=5,
    )
    for point in points:
        text = "none" if point.truncation is None else f"{point.truncation:g}"
        place.annotate(
            text, (point.score, point.distance), (6, 5), textcoords="offset points", fontsize=9, color="#e11d48"
        )
    inception = extractor == "inception"
    place.set_xlabel("Inception Score" + ("" if inception else f" by {extractor}") + " (higher is better)")
    place.set_ylabel(("FID" if inception else f"Frechet distance by {extractor}") + " (lower is better)")
    counts = {point.num_images for point in points}
    place.set_title(
        f"{name}: truncation, {' or '.join(f'{count:,}' for count in sorted(counts))} images a level", fontsize=11
    )
    place.grid(color="#f4f4f5")
    place.set_axisbelow(True)
    place.spines[["top", "right"]].set_visible(False)
    return figure


def _table(points: Sequence[Point]) -> str:
    rows = [f"{'truncation':>10} {'score':>9} {'+-':>7} {'distance':>9} {'+-':>7}  batch norm"]
    for point in points:
        name = "none" if point.truncation is None else f"{point.truncation:g}"
        spread = "" if point.score_deviation is None else f"{point.score_deviation:.2g}"
        error = "" if point.distance_error is None else f"{point.distance_error:.2g}"
        rows.append(f"{name:>10} {point.score:9.4g} {spread:>7} {point.distance:9.4g} {error:>7}  {point.batch_norm}")
    return "\n".join(rows)

"""From the features of one pass to the numbers of a card."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from hamgan.metrics.card import Card, ClassRow, Number
from hamgan.metrics.classes import class_accuracy, class_frechet
from hamgan.metrics.collect import Collected
from hamgan.metrics.frechet import FrechetReference
from hamgan.metrics.frechet_bias import frechet_infinity, frechet_jackknife
from hamgan.metrics.kid import kernel_distance, kernel_distance_jackknife
from hamgan.metrics.memorisation import memorisation
from hamgan.metrics.neighbours import PointSet
from hamgan.metrics.prdc import prdc
from hamgan.metrics.protocols import EvaluationSettings
from hamgan.metrics.reference import Reference, StoredFeatures
from hamgan.metrics.sources import IntArray
from hamgan.metrics.stats import FeatureStats

_JACKKNIFE = "standard error (jackknife)"
_OVER_SAMPLES = "standard error (over samples)"
_SMALL_REFERENCE = 10_000  # images


@dataclass
class Measurement:
    """Everything that the numbers are computed from.

    Attributes:
        extractor: Its name.
        collected: The generated images' features.
        reference: Stored statistics.
        real: The reference's features; None leaves out what needs them.
        train: Features of the training images, for memorisation; None leaves it out.
        heldout: Features of real images not trained on; None takes those that `unseen` names, or calibrates by the training
            images themselves.
        unseen: Numbers of images of `train` that were kept from training, (U,).
        class_names: Names by class index; None without.
        settings: What to compute.
        device: Where the matrix products run.
        card: Receives the numbers.
    """

    extractor: str
    collected: Collected
    reference: Reference
    real: StoredFeatures | None
    train: StoredFeatures | None
    heldout: StoredFeatures | None
    unseen: IntArray
    class_names: Sequence[str] | None
    settings: EvaluationSettings
    device: torch.device
    card: Card = field(default_factory=Card)

    def run(self, *, progress: bool) -> Card:
        """Compute everything that the settings ask for and the inputs allow.

        Raises:
            ValueError: If there are too few images, or labels do not fit.
        """
        steps: list[tuple[str, Callable[[], None]]] = [
            ("frechet distance", self._frechet),
            ("inception score", self._inception_score),
            ("kernel distance", self._kernel),
            ("precision, recall, density, coverage", self._prdc),
            ("classes", self._classes),
            ("memorisation", self._memorisation),
        ]
        self._warn()
        with tqdm(steps, disable=not progress, unit="step") as bar:
            for name, step in bar:
                bar.set_description(name)
                step()
        return self.card

    @property
    def _inception(self) -> bool:
        return self.extractor == "inception"

    def _name(self, kind: str, count: int) -> str:
        return f"{kind}{short_count(count)}_{self.extractor}"

    def _frechet(self) -> None:
        pool, settings = self.collected.pool, self.settings
        try:
            reference = FrechetReference(self.reference.moments)
        except ValueError as refusal:
            raise ValueError(f"{self.reference.path}: {refusal}") from None
        value = reference.distance(FeatureStats.from_features(pool).moments())
        error = bias = None
        if settings.frechet_groups and len(pool) >= 2 * settings.frechet_groups:
            jackknife = frechet_jackknife(pool, reference, num_groups=settings.frechet_groups, seed=settings.seed)
            error, bias = jackknife.error, jackknife.bias
        kind = "fid" if self._inception else "fd"
        note = "" if bias is None else f"about {bias:.4g} of it is the bias of {len(pool)} generated images"
        self.card.numbers[self._name(kind, len(pool))] = Number(
            value=max(value, 0.0),
            uncertainty=error,
            uncertainty_is="" if error is None else _JACKKNIFE,
            better="lower",
            note=note,
        )
        if settings.frechet_points and len(pool) >= 10:
            curve = frechet_infinity(pool, reference, num_points=settings.frechet_points, seed=settings.seed)
            self.card.curve = {"sizes": list(map(float, curve.sizes)), "values": list(curve.values)}
            self.card.numbers[f"{kind}_infinity_{self.extractor}"] = Number(
                value=curve.limit, better="lower", note="extrapolated to infinitely many generated images"
            )

    def _inception_score(self) -> None:
        if self.collected.score is None:
            return
        score, sums = self.collected.score.compute(), self.collected.score
        order = "" if sums.shuffle_seed is not None else "images not shuffled"
        self.card.numbers[self._name("is", len(self.collected.pool))] = Number(
            value=score.mean,
            uncertainty=score.std if sums.splits > 1 else None,
            uncertainty_is=f"deviation over {sums.splits} splits" if sums.splits > 1 else "",
            better="higher",
            note=order,
        )

    def _kernel(self) -> None:
        count = min(self.settings.kernel_images, len(self.collected.pool))
        if self.real is None or count < 2 or len(self.real.pool) < 2:
            return
        fake = self._pick(self.collected.pool, count)
        real = self._pick(self.real.pool, min(self.settings.kernel_images, len(self.real.pool)))
        groups = self.settings.frechet_groups or 10
        error = None
        if count >= 2 * groups:
            value, error = kernel_distance_jackknife(fake, real, num_groups=groups, seed=self.settings.seed)
        else:
            value = kernel_distance(fake, real)
        self.card.numbers[self._name("kid" if self._inception else "kd", count)] = Number(
            value=value,
            uncertainty=error,
            uncertainty_is="" if error is None else _JACKKNIFE,
            better="lower",
            note="unbiased: slightly below 0 is as good as 0",
        )

    def _prdc(self) -> None:
        count, k = self._shared_count(self.settings.neighbour_images), self.settings.neighbours
        if self.real is None or count <= k:
            if self.real is not None and self.settings.neighbour_images:
                self.card.warnings.append(f"{count} images of each side are too few for precision and recall, k = {k}")
            return
        result = prdc(self._pick(self.real.pool, count), self._pick(self.collected.pool, count), k, device=self.device)
        for key in ("precision", "recall", "density", "coverage"):
            self.card.numbers[self._name(key, count)] = Number(
                value=getattr(result, key),
                uncertainty=getattr(result, f"{key}_error"),
                uncertainty_is=_OVER_SAMPLES,
                better="higher",
                note=f"k = {k}; compare only equal counts" if key == "precision" else "",
            )

    def _classes(self) -> None:
        labels = self.collected.labels
        if labels is None or self.real is None or not self.settings.per_class or self.real.labels[0] < 0:
            return
        real_labels = np.asarray(self.real.labels)
        num_classes = 1 + int(max(labels.max(), real_labels.max()))
        if self.class_names is not None:
            num_classes = max(num_classes, len(self.class_names))
        if num_classes < 2:
            return
        pool, real = self.collected.pool, self.real.pool
        distances = class_frechet(real, real_labels, pool, labels, num_classes)
        accuracy = class_accuracy(real, real_labels, pool, labels, num_classes)
        kind = "intra_fid" if self._inception else "intra_fd"
        self.card.numbers[self._name(kind, len(pool))] = Number(
            value=_nanmean(distances), better="lower", note="mean of the Frechet distances within classes"
        )
        self.card.numbers[self._name("class_accuracy", len(pool))] = Number(
            value=accuracy.mean,
            uncertainty=accuracy.error,
            uncertainty_is=_OVER_SAMPLES,
            better="higher",
            note=f"held-out real images reach {accuracy.ceiling:.4g}",
        )
        counts = np.bincount(labels, minlength=num_classes)
        rows = [
            ClassRow(
                label=label,
                name=str(label) if self.class_names is None else self.class_names[label],
                num_images=int(counts[label]),
                frechet=_finite(distances[label]),
                accuracy=_finite(accuracy.per_class[label]),
                examples=tuple(np.flatnonzero(labels == label)[:8].tolist()),
            )
            for label in range(num_classes)
            if counts[label]
        ]
        self.card.classes = sorted(rows, key=_badness)

    def _memorisation(self) -> None:
        settings = self.settings
        count = min(settings.memorisation_images, len(self.collected.pool))
        if self.train is None or count < 1 or len(self.train.pool) < 2:
            return
        chosen = self._numbers(len(self.collected.pool), count)
        shown = np.setdiff1d(np.arange(len(self.train.pool)), self.unseen)
        known = shown[self._numbers(len(shown), min(len(shown), settings.memorisation_train))]
        heldout = None if self.heldout is None else self.heldout.pool
        if heldout is None and len(self.unseen):
            heldout = self.train.pool[self.unseen]
        result = memorisation(self.collected.pool[chosen], self.train.pool[known], heldout, device=self.device)
        if len(known) < len(shown):
            self.card.warnings.append(f"memorisation: compared with {len(known)} of {len(shown)} training images only")
        self.card.numbers[self._name("near_copies", count)] = Number(
            value=result.near_share,
            uncertainty=result.near_error,
            uncertainty_is=_OVER_SAMPLES,
            note=f"share nearer to a training image than {result.level:.0%} of real ones are ({result.calibration}); "
            f"neutral at {result.level:.2g}, above it training images are repeated",
        )
        self.card.numbers[self._name("nearer_than_real", count)] = Number(
            value=result.nearer_probability,
            note="probability to lie nearer to the training set than a real image does; well above 0.5 is copying",
        )
        self.card.numbers[self._name("exact_copies", count)] = Number(value=float(result.exact_copies))
        self.card.closest = [
            (int(chosen[i]), int(known[j]), distance) for (i, j), distance in zip(result.closest, result.distances)
        ]

    def _shared_count(self, limit: int) -> int:
        return 0 if self.real is None else min(limit, len(self.collected.pool), len(self.real.pool))

    def _numbers(self, total: int, count: int) -> IntArray:
        # Ascending, so that a part of a mapped file is read from front to back.
        return np.sort(np.random.RandomState(self.settings.seed).permutation(total)[:count])

    def _pick(self, features: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        return features[self._numbers(len(features), count)]

    def _warn(self) -> None:
        pool, warnings = self.collected.pool, self.card.warnings
        n, d = pool.shape
        if n < 2:
            raise ValueError(f"n = {n}: an evaluation needs at least 2 images")
        if n < d:
            warnings.append(
                f"{n} images for {d} features: the covariance is singular and the Frechet distance's bias large; "
                "read the kernel distance"
            )
        size = self.reference.moments.n
        if size is not None and size < max(d, _SMALL_REFERENCE):
            warnings.append(f"small reference: {size} images; its own sampling error is in every distance")
        distinct = len(PointSet(pool, centre=np.zeros(d)))
        if distinct < n:
            warnings.append(f"{n - distinct} of {n} images repeat another one exactly")
        self._warn_of_labels()
        if self.real is None:
            warnings.append("the reference keeps no features: no kernel distance, precision, classes, memorisation")

    def _warn_of_labels(self) -> None:
        labels, meta = self.collected.labels, self.reference.meta
        if labels is None or meta is None or meta.class_counts is None:
            return
        length = max(int(labels.max()) + 1, len(meta.class_counts))
        mine = np.bincount(labels, minlength=length) / len(labels)
        theirs = np.pad(np.array(meta.class_counts, float), (0, length - len(meta.class_counts)))
        apart = 0.5 * np.abs(mine - theirs / max(theirs.sum(), 1)).sum()
        # Chance alone moves about sqrt(K / N) of the mass.
        if apart > 0.05 + np.sqrt(length / len(labels)):
            self.card.warnings.append(
                f"classes: {apart:.0%} of the images would have to change class to match the reference's distribution"
            )


def _badness(row: ClassRow) -> tuple[float, float]:
    accuracy = 1.0 if row.accuracy is None else row.accuracy
    return accuracy, 0.0 if row.frechet is None else -row.frechet


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _nanmean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def short_count(count: int) -> str:
    """Write a sample count as metrics' names do: 50000 as 50k, 50176 as it is."""
    return f"{count // 1000}k" if count and count % 1000 == 0 else str(count)

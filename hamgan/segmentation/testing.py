"""`hamgan segmentation eval` and `predict`: a card of scores, the worst images, predictions as files."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from hamgan import __version__, checkpoint, dist
from hamgan import config as configuration
from hamgan.device import prepare, resolve_autocast, resolve_device
from hamgan.segmentation.dataset import LabelledImages, read_image
from hamgan.segmentation.evaluate import Prediction, TestConfig, predict, predictions
from hamgan.segmentation.open_data import list_images
from hamgan.segmentation.pictures import overlay, paint, save_mask, save_picture, sheet
from hamgan.segmentation.scores import Scores, confusion_matrix, scores
from hamgan.segmentation.trained import Trained

SAVE_SECONDS = 20.0
"""Longest time whose work a kill of an evaluation loses."""


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """How a segmentor is tested."""

    split: str
    """Of the data, for the card."""
    test: TestConfig
    """The views of each image."""
    num_images: int | None = None
    """The first so many images; None: all."""
    num_worst: int = 6
    """How many of the worst images are drawn."""
    save_predictions: bool = False
    """Whether every prediction is written as a PNG with the classes' colours."""
    device: str = "auto"
    """auto: a GPU if there is one; or a torch device such as cpu."""
    precision: str = "auto"
    """fp32, bf16 or auto."""
    num_workers: int = 0
    """Processes that read images ahead; 0: none."""

    def __post_init__(self) -> None:
        if self.num_images is not None and self.num_images < 1:
            raise ValueError(f"num_images is {self.num_images}; it must be at least 1")
        for name in ("num_worst", "num_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")


@dataclass(kw_only=True)
class _Tally:
    """What an evaluation has found so far; all that is needed to go on."""

    done: int
    """Images of this process's share."""
    confusion: NDArray[np.int64]
    worst: list[tuple[float, int]] = field(default_factory=list)
    """The lowest mean IoUs of single images with their indices, lowest first."""

    def add(self, one: Prediction, num_worst: int) -> None:
        """Count one image."""
        confusion = confusion_matrix(one.sample.labels, one.classes, len(self.confusion))
        self.confusion += confusion
        self.done += 1
        miou = scores(confusion).miou
        if miou == miou:  # nan where every pixel is ignored
            self.worst = sorted([*self.worst, (miou, one.place)])[:num_worst]

    def save(self, path: Path, key: str) -> None:
        """Save it, atomically."""
        state = {"key": key, "done": self.done, "confusion": torch.from_numpy(self.confusion), "worst": self.worst}
        checkpoint.save(path, state)


def _begin(path: Path, key: str, num_classes: int) -> _Tally:
    """Take up a tally that was stopped, or begin one."""
    if path.is_file():
        try:
            state = checkpoint.load(path)
            if state["key"] == key:
                worst = [(float(value), int(index)) for value, index in state["worst"]]
                return _Tally(done=int(state["done"]), confusion=state["confusion"].numpy(), worst=worst)
        except checkpoint.DamagedFileError:
            pass
    return _Tally(done=0, confusion=np.zeros((num_classes, num_classes), np.int64))


def evaluate(trained: Trained, data: LabelledImages, plan: EvaluationPlan, out: Path) -> dict[str, Any]:
    """Test a segmentor, or go on with a test that was stopped; every process takes its share of the images.

    Writes card.json, worst.png and, if asked, predictions/*.png into `out`.

    Args:
        trained: The segmentor.
        data: The labelled images.
        plan: How it is tested.
        out: The folder; made if it does not exist.

    Returns:
        The card.

    Raises:
        ValueError: If segmentor and data have different classes, or an image is bad.
        OSError: If something cannot be read or written.
    """
    if data.num_classes != trained.model.config.num_classes:
        raise ValueError(
            f"{trained.path}: tells {trained.model.config.num_classes} classes apart; the data has {data.num_classes}"
        )
    device = resolve_device(plan.device)
    prepare(device)
    dist.init(device)
    precision, autocast = resolve_autocast(plan.precision, device)  # type: ignore[arg-type]
    num_images = min(plan.num_images or len(data), len(data))
    mine = range(dist.rank(), num_images, dist.world_size())
    out.mkdir(parents=True, exist_ok=True)
    key = _key(trained, data, plan, precision, num_images)
    state_file = out / f".unfinished-{dist.rank()}-of-{dist.world_size()}.pt"
    tally = _begin(state_file, key, data.num_classes)
    model = trained.model.to(device).to(memory_format=torch.channels_last)

    began = saved = time.monotonic()
    first = tally.done
    bar = tqdm(total=len(mine), initial=first, unit="img", disable=not dist.is_main(), mininterval=1.0)
    for one in predictions(model, data, mine[first:], plan.test, autocast=autocast, num_workers=plan.num_workers):
        tally.add(one, plan.num_worst)
        if plan.save_predictions:
            file = out / "predictions" / f"{data.name(one.place)}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            save_mask(file, one.classes, data.palette)
        bar.update()
        if time.monotonic() - saved > SAVE_SECONDS:
            tally.save(state_file, key)
            saved = time.monotonic()
    bar.close()
    tally.save(state_file, key)  # the others may take longer; a kill while waiting loses nothing
    seconds = (time.monotonic() - began) / max(len(mine) - first, 1)

    confusion = dist.all_reduce_sum(torch.from_numpy(tally.confusion).to(device)).cpu().numpy()
    worst = _join_worst(tally.worst, plan.num_worst)
    card = _card(trained, data, plan, scores(confusion), worst, num_images, precision, seconds)
    if dist.is_main():
        _draw_worst(out / "worst.png", trained, data, plan, [index for _, index in worst])
        text = json.dumps(card, indent=2)
        checkpoint.write_atomically(out / "card.json", lambda file: file.write(text.encode()))
    dist.barrier()
    state_file.unlink(missing_ok=True)
    return card


def _key(trained: Trained, data: LabelledImages, plan: EvaluationPlan, precision: str, num_images: int) -> str:
    """Return what tells this evaluation from others."""
    what = (trained.digest, data.fingerprint, plan.test, precision, num_images, plan.num_worst, plan.save_predictions)
    return hashlib.sha256(repr(what).encode()).hexdigest()


def _join_worst(mine: list[tuple[float, int]], num_worst: int) -> list[tuple[float, int]]:
    everyone = dist.gather_objects(mine)
    return sorted(one for part in everyone for one in part)[:num_worst]


def _card(
    trained: Trained,
    data: LabelledImages,
    plan: EvaluationPlan,
    found: Scores,
    worst: Sequence[tuple[float, int]],
    num_images: int,
    precision: str,
    seconds: float,
) -> dict[str, Any]:
    """Return every number with what it depends on; shares as percentages with two decimals, as published."""
    return {
        "miou": _percent(found.miou),
        "pixel_accuracy": _percent(found.pixel_accuracy),
        "mean_accuracy": _percent(found.mean_accuracy),
        "class_iou": {name: _percent(iou) for name, iou in zip(data.class_names, found.class_iou, strict=True)},
        "protocol": {"name": plan.test.name} | configuration.to_mapping(plan.test) | {"precision": precision},
        "data": {
            "split": plan.split,
            "images": num_images,
            "of": len(data),
            "classes": data.num_classes,
            "fingerprint": data.fingerprint,
        },
        "model": {
            "file": str(trained.path),
            "step": trained.step,
            "sha256": trained.digest,
            "config": configuration.to_mapping(trained.model.config),
        },
        "worst": [{"image": data.name(index), "miou": _percent(value)} for value, index in worst],
        "seconds_per_image": round(seconds, 4),
        "hamgan": __version__,
        "torch": torch.__version__,
    }


def _percent(share: float) -> float | None:
    return None if share != share else round(100 * share, 2)


def card_text(card: dict[str, Any]) -> str:
    """Write a card's scores as lines for reading, classes from the worst to the best."""
    data, protocol = card["data"], card["protocol"]
    ious = sorted((iou, name) for name, iou in card["class_iou"].items() if iou is not None)
    absent = [name for name, iou in card["class_iou"].items() if iou is None]
    lines = [
        f"mIoU {card['miou']:.2f}  pixel accuracy {card['pixel_accuracy']:.2f}  mean accuracy {card['mean_accuracy']:.2f}"
        f"  ({protocol['name']}, {data['images']} images of {data['split']})",
        *(f"  {iou:6.2f}  {name}" for iou, name in ious),
    ]
    return "\n".join(lines + ([f"  absent: {', '.join(absent)}"] if absent else []))


def _draw_worst(
    path: Path, trained: Trained, data: LabelledImages, plan: EvaluationPlan, indices: Sequence[int]
) -> None:
    """Draw images, labels and predictions side by side, the worst first."""
    device = next(trained.model.parameters()).device
    _, autocast = resolve_autocast(plan.precision, device)  # type: ignore[arg-type]
    rows = [
        [one.sample.image, paint(one.sample.labels, data.palette), paint(one.classes, data.palette)]
        for one in predictions(trained.model, data, indices, plan.test, autocast=autocast)
    ]
    if rows:
        save_picture(path, sheet(rows))


def predict_files(
    trained: Trained, images: Sequence[Path], out: Path, *, test: TestConfig, device: str, precision: str
) -> int:
    """Write a mask, NAME-mask.png, and an overlay, NAME-overlay.png, of every image; images of any size.

    Args:
        trained: The segmentor.
        images: Files, and folders, of which all images are taken.
        out: The folder; made if it does not exist. Images of a folder keep their places below it.
        test: The views of each image.
        device: auto, or a torch device.
        precision: fp32, bf16 or auto.

    Returns:
        How many images there were.

    Raises:
        FileNotFoundError: If an image does not exist.
        ValueError: If a folder has no image, two images have one name, or one is unreadable or smaller than the network's
            stride.
    """
    where = resolve_device(device)
    prepare(where)
    _, autocast = resolve_autocast(precision, where)  # type: ignore[arg-type]
    model = trained.model.to(where).to(memory_format=torch.channels_last)
    files = [pair for path in images for pair in _targets(path)]
    _check_names(files)
    for file, name in tqdm(files, unit="img", disable=len(files) < 2):
        image = read_image(file)
        try:
            classes = predict(model, image, test, autocast)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        mask = out / f"{name}-mask.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        save_mask(mask, classes, trained.palette)
        save_picture(out / f"{name}-overlay.png", overlay(image, classes, trained.palette))
    return len(files)


def _targets(path: Path) -> list[tuple[Path, str]]:
    """Return the images that a path stands for, each with the name of what is written."""
    if not path.is_dir():
        return [(path, path.stem)]
    files = list_images(path)
    if not files:
        raise ValueError(f"{path}: has no image")
    return [(file, file.relative_to(path).with_suffix("").as_posix()) for file in files]


def _check_names(files: Sequence[tuple[Path, str]]) -> None:
    """Refuse images whose masks would be written over each other."""
    first: dict[str, Path] = {}
    for file, name in files:
        other = first.setdefault(name, file)
        if other.absolute() != file.absolute():
            raise ValueError(f"{file}: its mask would be written over that of {other}; give them to two commands")

"""A trained segmentor, from a run folder, a checkpoint of a run, or a public file."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hamgan import checkpoint, run_folder
from hamgan import config as configuration
from hamgan.nn import efficientnet_lite
from hamgan.segmentation.config import TrainConfig
from hamgan.segmentation.evaluate import TestConfig
from hamgan.segmentation.model import SegmentationConfig, Segmentor
from hamgan.segmentation.open_data import DataConfig
from hamgan.segmentation.palettes import ade20k_palette, distinct_palette, voc_palette
from hamgan.segmentation.pascal import CONTEXT_CLASSES, VOC_CLASSES

ADE20K_CLASSES = 150


@dataclass(kw_only=True)
class Trained:
    """A segmentor with what its outputs mean."""

    model: Segmentor
    """In evaluation mode, on the CPU."""
    class_names: tuple[str, ...]
    palette: NDArray[np.uint8]
    """Colours of the classes, (num_classes, 3)."""
    test: TestConfig
    """How images are shown to it."""
    data: DataConfig | None
    """What it was trained on; None for a public file, which does not tell."""
    path: Path
    """The file."""
    step: int | None
    """Optimiser steps taken; None for a public file."""

    @property
    def digest(self) -> str:
        """SHA-256 of its numbers, hexadecimal."""
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def open_trained(path: Path) -> Trained:
    """Open a trained segmentor.

    Args:
        path: A run folder (its newest whole checkpoint is taken), a checkpoint, or a public file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file is damaged or holds something else.
    """
    file = find_checkpoint(path) if path.is_dir() else path
    state = checkpoint.load_tensors(file)
    if state.get("kind") != "segmentation":
        return _open_public(file)
    checkpoint.verify(file)
    config = configuration.from_mapping(TrainConfig, state["config"], str(file))
    model = Segmentor(config.model)
    copy_weights(model, tested_weights(state), file)
    return Trained(
        model=model.eval(),
        class_names=tuple(state["class_names"]),
        palette=state["palette"].numpy(),
        test=config.test,
        data=config.data,
        path=file,
        step=int(state["step"]),
    )


def find_checkpoint(path: Path) -> Path:
    """Return the newest whole checkpoint of a run folder.

    Raises:
        FileNotFoundError: If there is none.
    """
    for file in reversed(run_folder.checkpoints(path)):
        try:
            checkpoint.verify(file)
            return file
        except checkpoint.DamagedFileError:
            continue
    raise FileNotFoundError(f"{path}: has no whole checkpoint (checkpoint-*.pt)")


def _open_public(file: Path) -> Trained:
    from hamgan.segmentation.load import load

    model = load(file)
    config: SegmentationConfig = model.config
    names, palette = _published_classes(config.num_classes)
    is_light = config.head == "light_ham"
    return Trained(
        model=model.eval(),
        class_names=names,
        palette=palette,
        test=TestConfig(scale=() if config.head == "ham_net_voc" else (2048, 512), multiple=32 if is_light else 1),
        data=None,
        path=file,
        step=None,
    )


def _published_classes(num_classes: int) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    """Return names and colours by the number of classes, which is all that a public file tells."""
    match num_classes:
        case 21:
            return tuple(VOC_CLASSES), voc_palette(num_classes)
        case 59:
            return tuple(CONTEXT_CLASSES), voc_palette(num_classes + 1)[1:]
    names = tuple(f"class {label}" for label in range(num_classes))
    return names, ade20k_palette() if num_classes == ADE20K_CLASSES else distinct_palette(num_classes)


def initialize(model: Segmentor, path: Path) -> None:
    """Copy weights into a segmentor before training: of a run or a public segmentor, or of a public backbone alone.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file's network is another one.
    """
    file = find_checkpoint(path) if path.is_dir() else path
    state = checkpoint.load_tensors(file)
    if state.get("kind") == "segmentation":
        copy_weights(model, tested_weights(state), file)
        return
    from hamgan.segmentation.load import load, load_backbone

    if holds_segmentor(state):
        own = model.config
        copy_weights(model, load(file, rank=own.rank, strides=own.backbone_strides or None).state_dict(), file)
    else:
        load_backbone(model, file)


def weights_file(name: str) -> Path:
    """Return where weights lie that a configuration names: a path, or efficientnet_lite0 for the installed package's.

    Raises:
        ValueError: If that package is not installed.
    """
    return Path(efficientnet_lite.weights_path() if name == "efficientnet_lite0" else name)


def tested_weights(state: dict[str, Any]) -> dict[str, Tensor]:
    """Return the average of a run's weights, or the weights where its checkpoint has none."""
    average: dict[str, Tensor] | None = state.get("average")
    weights: dict[str, Tensor] = state["model"] if average is None else average
    return weights


def holds_segmentor(state: dict[str, Any]) -> bool:
    """Say whether a public file's keys are those of a whole segmentor."""
    keys = state.get("state_dict", state)
    return any(str(key).startswith("decode_head.") for key in keys)


def copy_weights(model: Segmentor, weights: dict[str, Tensor], file: Path) -> None:
    """Copy a state dict into a segmentor of the same architecture.

    Raises:
        ValueError: If it is of another architecture; names the first tensor that does not fit.
    """
    own = model.state_dict()
    for name in [*own, *weights]:
        if name not in weights:
            raise ValueError(f"{file}: is of another network: it has no {name}")
        if name not in own:
            raise ValueError(f"{file}: is of another network: {name} has no place in this one")
        if own[name].shape != weights[name].shape:
            raise ValueError(
                f"{file}: is of another network: {name} is {tuple(weights[name].shape)}, here {tuple(own[name].shape)}"
            )
    model.load_state_dict(weights)

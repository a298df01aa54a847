"""What a run carries from step to step: the network, its optimiser, the step; how it begins, is saved and is taken up again."""

import copy
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hamgan import checkpoint, dist, run_folder
from hamgan import config as configuration
from hamgan.device import Autocast
from hamgan.segmentation.config import FREE_KEYS, TrainConfig
from hamgan.segmentation.dataset import IGNORED, LabelledImages
from hamgan.segmentation.model import Logits, Segmentor
from hamgan.segmentation.optimizer import build_optimizer
from hamgan.segmentation.trained import initialize, weights_file


@dataclass(kw_only=True)
class Run:
    """What the loop carries from step to step."""

    config: TrainConfig
    device: torch.device
    data: LabelledImages
    model: Segmentor
    optimizer: torch.optim.Optimizer
    average: Segmentor | None
    """The moving average of the network's weights; None: `config.ema_decay` is 0."""
    step: int = 0
    """Optimiser steps taken."""

    @property
    def tested(self) -> Segmentor:
        """What is tested: the average, or the network itself where there is none."""
        return self.model if self.average is None else self.average


def build_run(config: TrainConfig, device: torch.device, data: LabelledImages, *, fresh: bool) -> Run:
    """Build network and optimiser, the same on every process.

    Args:
        config: Of the run.
        device: Where it computes.
        data: The training images.
        fresh: Whether the run begins, and so with the weights that `config.weights` names.
    """
    torch.manual_seed(config.seed)
    model = Segmentor(config.model)
    if fresh and config.weights:
        initialize(model, weights_file(config.weights))
    model = model.to(device).to(memory_format=torch.channels_last)
    dist.broadcast_module(model)
    return Run(
        config=config,
        device=device,
        data=data,
        model=model,
        optimizer=build_optimizer(model, config.optimizer),
        average=copy.deepcopy(model).eval().requires_grad_(False) if config.ema_decay else None,
    )


@torch.no_grad()
def update_average(run: Run) -> None:
    """Move the average, if there is one, towards the network after a step.

    Weights and running statistics are averaged; the ham's bases are copied, as their columns have no order to be averaged in.
    """
    if run.average is None:
        return
    decay = min(run.config.ema_decay, run.step / (run.step + 9))  # the first weights are soon forgotten
    targets: list[Tensor] = []
    sources: list[Tensor] = []
    for (name, target), source in zip(run.average.state_dict().items(), run.model.state_dict().values(), strict=True):
        if name.endswith("ham.bases"):
            target.copy_(source)
        else:
            targets.append(target)
            sources.append(source)
    torch._foreach_lerp_(targets, sources, 1 - decay)


def state_of(run: Run) -> dict[str, Any]:
    """Return everything that going on, testing and predicting need. What is random follows from the seed and the step."""
    return {
        "kind": "segmentation",
        "config": configuration.to_mapping(run.config),
        "step": run.step,
        "data": run.data.fingerprint,
        "class_names": list(run.data.class_names),
        "palette": torch.from_numpy(run.data.palette.copy()),
        "model": run.model.state_dict(),
        "average": run.average.state_dict() if run.average is not None else None,
        "optimizer": run.optimizer.state_dict(),
    }


def restore(run: Run, state: dict[str, Any]) -> None:
    """Put a checkpoint's state into a run.

    Raises:
        ValueError: If the checkpoint is of another configuration or data set, or if it is not what `state_of` returns. Its
            checksum proves that it is what was written, not who wrote it.
    """
    with checkpoint.refusing_damage():
        _restore(run, state)


def _restore(run: Run, state: dict[str, Any]) -> None:
    saved = configuration.from_mapping(TrainConfig, state["config"], "checkpoint")
    if rows := run_folder.fixed_differences(saved, run.config, FREE_KEYS):
        raise ValueError(f"the checkpoint is of another configuration: {'; '.join(rows[:3])}")
    if state["data"] != run.data.fingerprint:
        raise ValueError("data.path: holds other images than this run began with; give it its folder back")
    step = state["step"]
    if type(step) is not int or step < 0:
        raise ValueError(f"the checkpoint's step is {reprlib.repr(step)}")
    checkpoint.check_tensors("model", run.model.state_dict(), state["model"])
    if run.average is not None:
        checkpoint.check_tensors("average", run.average.state_dict(), state["average"])
    moments = _moments(run.optimizer, state["optimizer"]["state"])
    run.model.load_state_dict(state["model"])
    if run.average is not None:
        run.average.load_state_dict(state["average"])
    # The groups' settings are the configuration's, not the file's.
    run.optimizer.load_state_dict(run.optimizer.state_dict() | {"state": moments})
    run.step = step


def _moments(optimizer: torch.optim.Optimizer, saved: dict[int, dict[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
    """Check an optimiser's state and copy it into tensors laid out like the weights: a fused step trusts sizes blindly."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    if surplus := saved.keys() - set(range(len(weights))):
        raise ValueError(
            f"the checkpoint's optimizer has entry {reprlib.repr(min(map(str, surplus)))} of {len(weights)}"
        )
    state = {}
    for index, theirs in saved.items():
        weight = weights[index].detach()
        sgd = isinstance(optimizer, torch.optim.SGD)
        ours = (
            {"momentum_buffer": weight} if sgd else {"step": torch.zeros(()), "exp_avg": weight, "exp_avg_sq": weight}
        )
        checkpoint.check_tensors(f"optimizer[{index}]", ours, theirs)
        state[index] = {key: torch.empty_like(tensor).copy_(theirs[key]) for key, tensor in ours.items()}
    return state


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One micro-batch."""

    images: Tensor
    """(B, 3, H, W), normalised."""
    labels: Tensor
    """(B, H, W), int64: classes or 255."""
    bases_keys: Tensor
    """int64 (B,): fresh bases of the Hamburger are a function of them."""
    layer_seed: int
    """Of torch's generator, from which dropout and drop path draw."""


def take_step(
    model: Segmentor,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[MicroBatch],
    *,
    auxiliary_weight: float,
    label_smoothing: float,
    jaccard_weight: float,
    autocast: Autocast,
) -> dict[str, Tensor]:
    """Take one optimiser step: add up the micro-batches' gradients, average them over the processes, and let it step.

    Returns:
        Means over the micro-batches: loss, auxiliary_loss (where there is that head), pixel_accuracy; and the gradient's norm
        grad_norm. On the device; nothing here waits for it.
    """
    optimizer.zero_grad(set_to_none=True)
    parts = []
    for batch in micro_batches:
        torch.manual_seed(batch.layer_seed)
        with autocast():
            logits = model.forward_train(batch.images, batch.bases_keys)
        losses, statistics = loss_of(
            logits, batch.labels, auxiliary_weight, label_smoothing=label_smoothing, jaccard_weight=jaccard_weight
        )
        (losses / len(micro_batches)).backward()
        parts.append(statistics)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    dist.all_reduce_mean_coalesced(gradients)
    norm = torch.stack(torch._foreach_norm(gradients)).norm()
    optimizer.step()
    return {key: torch.stack([part[key] for part in parts]).mean() for key in parts[0]} | {"grad_norm": norm}


def loss_of(
    logits: Logits,
    labels: Tensor,
    auxiliary_weight: float,
    *,
    label_smoothing: float = 0.0,
    jaccard_weight: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss, and what to record of it."""
    main = cross_entropy(logits.main, labels, label_smoothing)
    counted = labels != IGNORED
    right = (logits.main.detach().argmax(1) == labels) & counted
    statistics = {"loss": main.detach(), "pixel_accuracy": right.sum() / counted.sum().clamp_min(1)}
    if jaccard_weight:
        jaccard = jaccard_loss(logits.main, labels)
        main = main + jaccard_weight * jaccard
        statistics["jaccard_loss"] = jaccard.detach()
    if logits.auxiliary is None:
        return main, statistics
    auxiliary = cross_entropy(logits.auxiliary, labels, label_smoothing)
    return main + auxiliary_weight * auxiliary, statistics | {"auxiliary_loss": auxiliary.detach()}


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Average the cross-entropy over all pixels; ignored ones add nothing to the sum, and count in the number (published)."""
    total = F.cross_entropy(
        logits.float(), labels, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing
    )
    return total / labels.numel()


def jaccard_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1 - the mean over the batch's classes of intersection over union, with probabilities for predictions.

    Source: Rahman & Wang 2016, equation 4; over the whole micro-batch, as the score is taken over the whole data set.
    """
    num_classes = logits.shape[1]
    counted = (labels != IGNORED).flatten()
    classes = torch.where(
        counted, labels.flatten(), num_classes
    )  # ignored pixels are a class of their own, left out below
    probability = logits.float().softmax(1).movedim(1, -1).reshape(-1, num_classes) * counted[:, None]
    right = probability.gather(1, classes.clamp_max(num_classes - 1)[:, None])[:, 0]
    intersection = right.new_zeros(num_classes + 1).index_add(0, classes, right)[:num_classes]
    labelled = torch.bincount(classes, minlength=num_classes + 1)[:num_classes]
    union = probability.sum(0) + labelled - intersection
    present = labelled > 0
    return 1 - (intersection / union.clamp_min(1e-6) * present).sum() / present.sum().clamp_min(1)

"""Training of a segmentor, from top to bottom."""

import math
import signal
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hamgan import checkpoint, dist, run_folder
from hamgan.device import Autocast, keep_memory, prepare, resolve_autocast, resolve_device
from hamgan.progress import Averages, Progress, SignalWatch, Stopped
from hamgan.run_folder import RunFolder
from hamgan.segmentation.config import FREE_KEYS, TrainConfig
from hamgan.segmentation.dataset import LabelledImages
from hamgan.segmentation.evaluate import predictions
from hamgan.segmentation.loader import bases_key, batches, layer_seed
from hamgan.segmentation.open_data import open_data
from hamgan.segmentation.optimizer import set_learning_rate
from hamgan.segmentation.pictures import paint, save_picture, sheet
from hamgan.segmentation.run import MicroBatch, Run, build_run, restore, state_of, take_step, update_average
from hamgan.segmentation.scores import confusion_matrix, scores

Folder: TypeAlias = RunFolder[TrainConfig]


def train(config: TrainConfig, *, preset: str, root: Path = Path("runs"), run_dir: Path | None = None) -> Path:
    """Train a segmentor, or go on with a run that was stopped.

    Args:
        config: Everything that the run depends on.
        preset: Its name, for the run folder.
        root: Where run folders lie.
        run_dir: The run folder; None: the newest of this preset with the same configuration, or a new one.

    Returns:
        The run folder.

    Raises:
        ValueError: If data, configuration and run folder do not fit together.
        OSError: If something cannot be read or written.
        Stopped: On SIGINT or SIGTERM, after the step is finished and all is saved.
    """
    device = resolve_device(config.device)
    prepare(device)
    keep_memory(device)
    dist.init(device)
    micro_size, num_micro = config.micro_batches(dist.world_size())
    precision, autocast = resolve_autocast(config.precision, device)
    data, test_data = (open_data(config.data, split) for split in (config.data.train_split, config.data.test_split))
    check_classes(config, data)

    path = dist.from_rank0(run_dir or run_folder.choose(root, preset, config, FREE_KEYS))
    folder = None
    if dist.is_main():
        keep = config.log.keep_checkpoints
        folder = RunFolder(path, config, free_keys=FREE_KEYS, keep_checkpoints=keep, pictures="predictions")
    newest = dist.from_rank0(folder.newest_checkpoint() if folder else None)
    run = build_run(config, device, data, fresh=newest is None)
    if newest is not None:
        restore(run, checkpoint.load_tensors(newest))
    if folder:
        announce(folder, run, test_data, precision, num_micro)
    if (
        run.step
        and is_test_due(config, run.step)
        and not dist.from_rank0(folder.has_metrics(run.step) if folder else None)
    ):
        test(folder, run, test_data, autocast)  # the run was killed during it
    if run.step >= config.steps:
        if folder:
            folder.say(f"{path}: finished at step {run.step}")
            folder.close()
        return path

    first_place = dist.rank() * micro_size * num_micro
    progress = Progress(run.step * config.batch_size, config.steps * config.batch_size)
    sums = Averages()
    signals = SignalWatch()
    stream = batches(
        data,
        config.augment,
        seed=config.seed,
        batch_size=config.batch_size,
        steps=range(run.step, config.steps),
        places=range(first_place, first_place + micro_size * num_micro),
        num_workers=config.data.num_workers,
        pin_memory=device.type == "cuda",
    )
    run.model.train()
    try:
        for images, labels in stream:
            set_learning_rate(run.optimizer, config.optimizer.learning_rate(run.step, config.steps))
            parts = cut(run, images, labels, micro_size, first_place)
            sums.add(
                take_step(
                    run.model,
                    run.optimizer,
                    parts,
                    auxiliary_weight=config.auxiliary_weight,
                    label_smoothing=config.label_smoothing,
                    jaccard_weight=config.jaccard_weight,
                    autocast=autocast,
                )
            )
            run.step += 1
            update_average(run)
            progress.update(run.step * config.batch_size)

            last = run.step == config.steps
            stop = dist.any_rank(signals.received is not None)
            saves = stop or is_test_due(config, run.step) or run.step % config.log.checkpoint_every == 0
            if saves or run.step % config.log.stats_every == 0:
                record(folder, run, sums, progress)
            if folder and saves:
                folder.save_checkpoint(run.step, state_of(run))
            if is_test_due(config, run.step):
                test(folder, run, test_data, autocast)
            if stop and not last:
                message = f"stopped at step {run.step} of {config.steps}, saved in {path}; the same command goes on"
                raise Stopped(message, 128 + (signals.received or signal.SIGTERM))
        if folder:
            folder.say(f"finished {run.step} steps in {progress.seconds:.0f} s")
    finally:
        progress.close()
        signals.close()
        if folder:
            folder.close()
    return path


def check_classes(config: TrainConfig, data: LabelledImages) -> None:
    """Refuse a network for another number of classes than the data's."""
    if data.num_classes != config.model.num_classes:
        raise ValueError(f"model.num_classes is {config.model.num_classes}; the data has {data.num_classes} classes")


def is_test_due(config: TrainConfig, step: int) -> bool:
    """Say whether the network is tested after this many steps."""
    return step == config.steps or bool(config.log.test_every and step % config.log.test_every == 0)


def announce(folder: Folder, run: Run, test_data: LabelledImages, precision: str, num_micro: int) -> None:
    """Say what is about to happen."""
    config = run.config
    num_parameters = sum(p.numel() for p in run.model.parameters())
    folder.say(
        f"{folder.path}: {len(run.data)} images to train on, {len(test_data)} to test on, {run.data.num_classes} classes; "
        f"{num_parameters:,} parameters; batch {config.batch_size}; {config.steps} steps on {run.device} in {precision}"
        f"{f' with {torch.get_num_threads()} threads' if run.device.type == 'cpu' else ''}"
    )
    if num_micro > 1:
        folder.say(
            f"warning: gradients of {num_micro} micro-batches are added up; batch norm sees one micro-batch of "
            f"{config.batch_size // num_micro // dist.world_size()} images a process at a time"
        )
    folder.forget_after(run.step)
    if run.step:
        folder.say(f"going on from step {run.step}")


def cut(run: Run, images: Tensor, labels: Tensor, micro_size: int, first_place: int) -> list[MicroBatch]:
    """Cut this process's share of a batch into micro-batches on the device, with their random numbers."""
    seed, step, device = run.config.seed, run.step, run.device
    images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
    labels = labels.to(device, non_blocking=True)
    keys = [bases_key(seed, step, first_place + place) for place in range(len(images))]
    bases_keys = torch.tensor(keys, dtype=torch.int64).to(device, non_blocking=True)
    return [
        MicroBatch(
            images=images[start : start + micro_size],
            labels=labels[start : start + micro_size],
            bases_keys=bases_keys[start : start + micro_size],
            layer_seed=layer_seed(seed, step, first_place + start),
        )
        for start in range(0, len(images), micro_size)
    ]


def record(folder: Folder | None, run: Run, sums: Averages, progress: Progress) -> None:
    """Write a row of statistics, the mean over the processes since the last row; every process calls this.

    Raises:
        ValueError: If one is not finite: called before every save, so that no whole checkpoint is replaced by a ruined one.
    """
    row = sums.take()
    bad = [key for key, value in row.items() if not math.isfinite(value)]
    if bad:
        raise ValueError(f"training diverged at step {run.step}: {', '.join(bad)} not finite; lower optimizer.lr")
    if folder:
        rate = run.config.optimizer.learning_rate(run.step - 1, run.config.steps)
        folder.record(run.step, row | {"lr": rate, "images_per_second": progress.rate()})
        progress.show(loss=row["loss"], accuracy=row["pixel_accuracy"])


def test(folder: Folder | None, run: Run, data: LabelledImages, autocast: Autocast) -> None:
    """Test the network as it is, each process on its share of the images; record the scores and draw predictions."""
    log = run.config.log
    num_images = min(log.test_images or len(data), len(data))
    mine = range(dist.rank(), num_images, dist.world_size())
    confusion = torch.zeros(data.num_classes, data.num_classes, dtype=torch.int64)
    rows: list[list[NDArray[np.uint8]]] = []
    if not run.config.model.cross_replica:
        dist.broadcast_module(run.tested)  # each process's norms saw images of their own; the saved ones are rank 0's
    run.tested.eval()
    for one in predictions(run.tested, data, mine, run.config.test, autocast=autocast):
        confusion += torch.from_numpy(confusion_matrix(one.sample.labels, one.classes, data.num_classes))
        if len(rows) < log.picture_images:
            maps = [paint(labels, data.palette) for labels in (one.sample.labels, one.classes)]
            rows.append([one.sample.image, *maps])
    run.model.train()
    confusion = dist.all_reduce_sum(confusion.to(run.device)).cpu()
    if folder:
        found = scores(confusion.numpy())
        folder.record_metrics(run.step, {"miou": found.miou, "test_pixel_accuracy": found.pixel_accuracy})
        save_picture(folder.pictures / f"{run.step:08d}.png", sheet(rows))
        folder.say(
            f"step {run.step}: mIoU {100 * found.miou:.2f}, pixel accuracy {100 * found.pixel_accuracy:.2f} "
            f"({run.config.test.name}, {num_images} images)"
        )

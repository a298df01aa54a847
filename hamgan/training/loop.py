"""Training, from top to bottom."""

import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hamgan import checkpoint, dist, model_card, snapshot
from hamgan.data.build import build
from hamgan.data.hdf5 import TrainingFile
from hamgan.data.loader import BatchLoader
from hamgan.data.sampler import ShuffledSampler
from hamgan.device import prepare, resolve_autocast, resolve_device
from hamgan.sampling.draw import draw_images
from hamgan.sampling.grid import make_grid, save_png
from hamgan.training import health, run_folder
from hamgan.training.augment import flip
from hamgan.training.config import TrainConfig, parse_duration
from hamgan.training.ema import update_ema
from hamgan.training.judge import QuickEvaluation
from hamgan.training.noise import NoiseSource, Phase
from hamgan.training.progress import Averages, Progress, Schedule, SignalWatch
from hamgan.training.run import Run, build_run, restore, set_learning_rates, state_of
from hamgan.training.run_folder import RunFolder
from hamgan.training.step import MicroBatch, Statistics, d_phase, g_phase

DIVERSITY_IMAGES = 24
"""Images a class whose pairwise distances the health check averages."""


class Stopped(Exception):  # noqa: N818  (not an error)
    """Training left early, on a signal, after saving."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def train(config: TrainConfig, *, preset: str, root: Path = Path("runs"), run_dir: Path | None = None) -> Path:
    """Train a generator, or go on with a run that was stopped.

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
    dist.init(device)
    micro_size, num_micro = config.micro_batches(dist.world_size())
    precision, autocast = resolve_autocast(config.precision, device)
    data = open_data(config)
    total_steps = parse_duration("duration", config.duration).steps(config.batch_size * config.d_steps, data.num_images)

    path = dist.from_rank0(run_dir or run_folder.choose(root, preset, config))
    folder = RunFolder(path, config) if dist.is_main() else None
    run = build_run(config, device, data)
    newest = dist.from_rank0(folder.newest_checkpoint() if folder else None)
    if newest is not None:
        restore(run, checkpoint.load_tensors(newest))
    if folder:
        announce(folder, run, total_steps, precision, num_micro)
    if run.step >= total_steps:
        finish(folder, run, None)
        return path

    noise = NoiseSource(
        seed=config.seed,
        z_dim=config.generator.z_dim,
        num_classes=config.generator.num_classes,
        batch_size=config.batch_size,
        device=device,
    )
    sampler = ShuffledSampler(
        data.num_images, config.seed, labels=data.labels, class_balanced=config.data.class_balanced
    )
    loader = BatchLoader(
        data,
        sampler,
        batch_size=config.batch_size,
        position=run.nimg,
        rank=dist.rank(),
        world_size=dist.world_size(),
        pin_memory=device.type == "cuda",
    )
    quick = None
    if folder and config.eval.extractor:
        quick = QuickEvaluation(data, config.eval.extractor, config.eval.num_images, device)
    first_row = dist.rank() * micro_size * num_micro
    due = Schedule(config, data.num_images, total_steps)
    progress = Progress(run.nimg, total_steps * config.batch_size * config.d_steps)
    sums = Averages()
    signals = SignalWatch()
    objective, augmentation = config.objective, config.augment
    take_d_step = partial(d_phase, run.G, run.D, objective=objective, augmentation=augmentation, autocast=autocast)
    take_g_step = partial(g_phase, run.G, run.D, objective=objective, augmentation=augmentation, autocast=autocast)

    def micro_batches(phase: Phase, repeat: int, real: Tensor, y: Tensor) -> list[MicroBatch]:
        """Cut this process's real images into micro-batches with their noise."""
        cuts = [(m * micro_size, (m + 1) * micro_size) for m in range(num_micro)]
        return [
            MicroBatch(
                real=real[a:b],
                y=y[a:b],
                noise=noise.draw(run.step, phase, repeat, first_row + a, first_row + b),
            )
            for a, b in cuts
        ]

    batches: Iterator[tuple[Tensor, Tensor]] = iter(loader)
    try:
        while run.step < total_steps:
            set_learning_rates(run, config.learning_rate_factor(run.step, total_steps))
            for repeat in range(config.d_steps):
                images, y = next(batches)
                real = images.to(device, non_blocking=True).float().div_(127.5).sub_(1)
                y = y.to(device, non_blocking=True)
                if config.data.flip:
                    real = flip(real, noise.flips(run.step, repeat, first_row, first_row + len(y)))
                d_step = run.step * config.d_steps + repeat
                penalize = bool(config.objective.r1_gamma or config.objective.r2_gamma)
                penalize = penalize and d_step % config.objective.penalty_every == 0
                sums.add(take_d_step(micro_batches("d", repeat, real, y), penalize=penalize))
            sums.add(take_g_step(micro_batches("g", 0, real, y)))
            run.step += 1
            update_ema(run.G_ema, run.G.network, run.step, config.ema)
            progress.update(run.nimg)

            stop = dist.any_rank(signals.received is not None)
            if folder and due("stats_every", run.step):
                record(folder, run, sums, progress)
            if folder and due("health_every", run.step):
                check_health(folder, run)
            if folder and due("grid_every", run.step):
                draw_grid(folder, run)
            if folder and quick and due("eval_every", run.step):
                judge(folder, run, quick)
            if folder and (stop or due("checkpoint_every", run.step)):
                record(folder, run, sums, progress)
                save(folder, run)
            if stop and run.step < total_steps:
                message = f"stopped at step {run.step} of {total_steps}, saved in {path}; the same command goes on"
                raise Stopped(message, 128 + (signals.received or signal.SIGTERM))
    finally:
        loader.close()
        progress.close()
        signals.close()
        if folder and run.step < total_steps:
            folder.close()
    if folder:
        record(folder, run, sums, progress)
    if folder and quick:
        judge(folder, run, quick)
    finish(folder, run, progress)
    return path


def open_data(config: TrainConfig) -> TrainingFile:
    """Open the training file, building it first where the configuration names its source, and check that it fits.

    Raises:
        FileNotFoundError: If there is no such file and no source.
        ValueError: If its resolution or number of classes is not the networks'.
    """
    path = Path(config.data.path)
    resolution, num_classes = config.generator.resolution, config.generator.num_classes
    if dist.is_main() and not path.is_file():
        if not config.data.source:
            raise FileNotFoundError(
                f"{config.data.path or 'data.path'}: no training file; "
                f"build it with: hamgan data build FOLDER {path} --resolution {resolution}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        build(config.data.source, path, resolution=resolution, resize=config.data.resize)
    dist.barrier()
    data = TrainingFile(path)
    if data.resolution != resolution:
        raise ValueError(
            f"{path}: holds images of {data.resolution}x{data.resolution}; generator.resolution is {resolution}"
        )
    if data.num_classes > num_classes:
        raise ValueError(f"{path}: has {data.num_classes} classes; generator.num_classes is {num_classes}")
    return data


def announce(folder: RunFolder, run: Run, total_steps: int, precision: str, num_micro: int) -> None:
    """Say what is about to happen."""
    config, data = run.config, run.data
    num_g, num_d = (sum(p.numel() for p in player.network.parameters()) for player in (run.G, run.D))
    folder.say(
        f"{folder.path}: {data.num_images} images of {data.resolution}x{data.resolution} in {data.num_classes} classes; "
        f"G {num_g:,} and D {num_d:,} parameters; batch {config.batch_size}; {total_steps} steps on {run.device} in {precision}"
    )
    if num_micro > 1:
        folder.say(
            f"warning: gradients of {num_micro} micro-batches are added up; batch norm sees one micro-batch of "
            f"{config.batch_size // num_micro // dist.world_size()} images a process at a time"
        )
    if run.step:
        folder.say(f"going on from step {run.step}")
        folder.forget_after(run.step)
    else:
        draw_real_grid(folder, run)


def finish(folder: RunFolder | None, run: Run, progress: Progress | None) -> None:
    """Save, draw and judge the end of a run; on a run that was finished before, say so."""
    if folder is None:
        return
    if progress is None:
        folder.say(f"{folder.path}: finished at step {run.step}; a longer --duration would go on")
    else:
        save(folder, run)
        grid = draw_grid(folder, run)
        ratio = check_health(folder, run)
        folder.say(
            f"finished {run.step} steps in {progress.seconds:.0f} s; samples in {grid}; their pairwise distance within a "
            f"class is {ratio:.2f} of the data's"
        )
    folder.close()


def record(folder: RunFolder, run: Run, sums: Averages, progress: Progress) -> None:
    """Write a row of statistics, the mean since the last row; nothing if there was no step since.

    Raises:
        ValueError: If one is not finite: called before every save, so that no whole checkpoint is replaced by a ruined one.
    """
    row = sums.take()
    if not row:
        return
    bad = [key for key, value in row.items() if value != value or abs(value) == float("inf")]
    if bad:
        raise ValueError(f"training diverged at step {run.step}: {', '.join(bad)} not finite; lower the learning rates")
    row |= {"nimg": float(run.nimg), "images_per_second": progress.rate()}
    folder.record(run.step, row)
    progress.show(d=row["d_loss"], g=row["g_loss"])


def fixed_samples(run: Run, columns: int) -> tuple[list[int], list[int]]:
    """Return seeds and classes of the grid: a row a class, the same seeds in each."""
    num_classes = min(run.data.num_classes, run.config.log.grid_classes)
    classes = [row * run.data.num_classes // num_classes for row in range(num_classes)]
    return list(range(columns)) * num_classes, [y for y in classes for _ in range(columns)]


def real_images(run: Run, columns: int) -> tuple[Tensor, Tensor]:
    """Return up to `columns` real images of each class of the grid, uint8 (N, 3, H, W), and their classes."""
    labels = torch.from_numpy(run.data.labels)
    _, classes = fixed_samples(run, 1)
    indices = torch.cat([torch.nonzero(labels == y).flatten()[:columns] for y in classes])
    images = torch.from_numpy(run.data.read(indices.numpy())).permute(0, 3, 1, 2)
    return images, labels[indices]


def draw_real_grid(folder: RunFolder, run: Run) -> None:
    """Draw real images, a row a class as in the other grids, white where a class has fewer than a row."""
    columns = run.config.log.grid_columns
    images, labels = real_images(run, columns)
    rows = []
    for y in labels.unique_consecutive():
        row = images[labels == y]
        rows += [row, row.new_full((columns - len(row), *row.shape[1:]), 255)]
    save_png(folder.path / "samples" / "real.png", make_grid(torch.cat(rows), columns))


def draw_grid(folder: RunFolder, run: Run) -> Path:
    """Draw the fixed latents with the EMA generator."""
    columns = run.config.log.grid_columns
    images = draw_images(run.G_ema, *fixed_samples(run, columns))
    path = folder.path / "samples" / f"{run.step:08d}.png"
    save_png(path, make_grid(images, columns))
    return path


def check_health(folder: RunFolder, run: Run) -> float:
    """Measure diversity, spectral norms and the hams' fit; return the diversity over the real data's."""
    seeds, classes = fixed_samples(run, DIVERSITY_IMAGES)
    fake_diversity = health.class_diversity(draw_images(run.G_ema, seeds, classes), torch.tensor(classes))
    real, real_y = real_images(run, DIVERSITY_IMAGES)
    ratio = fake_diversity / max(health.class_diversity(real, real_y), 1e-9)
    G, D = run.G_ema, run.D.network
    z = torch.randn(16, G.config.z_dim, generator=torch.Generator().manual_seed(0)).to(run.device)
    y = (torch.arange(16) % run.data.num_classes).to(run.device)
    real, real_y = real[:16].to(run.device), real_y[:16].to(run.device)
    D.eval()
    row: Statistics = (
        health.largest_sigmas(run.G.network, "G")
        | health.largest_sigmas(D, "D")
        | health.ham_statistics(G, lambda: G(z, y), "G")
        | health.ham_statistics(D, lambda: D(real.float() / 127.5 - 1, real_y), "D")
    )
    D.train()
    folder.record(run.step, {key: float(value) for key, value in row.items()} | {"diversity_ratio": ratio})
    return ratio


def judge(folder: RunFolder, run: Run, quick: QuickEvaluation) -> None:
    """Take the quick evaluation, and keep the snapshot if it is the best so far."""
    value = quick(run.G_ema)
    folder.record_metrics(run.step, {quick.name: value})
    if value < run.best:
        run.best = value
        model_card.write_snapshot(folder.best_path, present_snapshot(folder, run))


def present_snapshot(folder: RunFolder, run: Run) -> snapshot.Snapshot:
    """Return the averaged generator with where it comes from."""
    provenance = {"run": folder.path.name, "step": run.step, "nimg": run.nimg, "data": run.data.fingerprint}
    return snapshot.Snapshot(generator=run.G_ema, class_names=run.data.class_names, provenance=provenance)


def save(folder: RunFolder, run: Run) -> None:
    """Save a checkpoint and a snapshot."""
    folder.save_checkpoint(run.step, state_of(run))
    shot = present_snapshot(folder, run)
    folder.save_snapshot(run.step, lambda path: model_card.write_snapshot(path, shot))

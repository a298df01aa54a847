"""Training, from top to bottom."""

import signal
from functools import partial
from pathlib import Path

from hamgan import checkpoint, dist
from hamgan.data.build import build
from hamgan.data.hdf5 import TrainingFile
from hamgan.device import check_compile, keep_memory, prepare, resolve_autocast, resolve_device
from hamgan.progress import Averages, Progress, SignalWatch, Stopped
from hamgan.training import run_folder
from hamgan.training.config import TrainConfig, parse_duration
from hamgan.training.ema import MovingAverage
from hamgan.training.observer import Observer
from hamgan.training.run import Run, begin_again, build_run, restore, set_learning_rates
from hamgan.training.run_folder import GanRunFolder
from hamgan.training.schedule import Schedule
from hamgan.training.sentinel import HEALTHY, Verdict
from hamgan.training.step import d_phase, g_phase
from hamgan.training.stream import Stream


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
        ValueError: If data, configuration and run folder do not fit together, or the run collapses and is not to be, or can
            no longer be, rolled back.
        OSError: If something cannot be read or written.
        Stopped: On SIGINT, SIGTERM or SIGUSR1, after the step is finished and all is saved.
    """
    device = resolve_device(config.device)
    check_compile(config.compile, device)
    prepare(device)
    keep_memory(device)
    dist.init(device)
    micro_size, num_micro = config.micro_batches(dist.world_size())
    precision, autocast = resolve_autocast(config.precision, device)
    data = open_data(config)
    total_steps = parse_duration("duration", config.duration).steps(config.batch_size * config.d_steps, data.num_images)

    path, folder, newest = open_folder(config, preset, root, run_dir)
    run = build_run(config, device, data)
    if newest is not None:
        restore(run, checkpoint.load_tensors(newest))
    observer = Observer(folder, run, total_steps)
    observer.announce(precision, num_micro)
    if run.step >= total_steps:
        observer.say(f"{path}: finished at step {run.step}; a longer --duration would go on")
        observer.close()
        return path

    stream = Stream(run, micro_size, num_micro)
    due = Schedule(config, data.num_images, total_steps)
    progress = Progress(run.nimg, total_steps * config.batch_size * config.d_steps)
    sums = Averages()
    signals = SignalWatch()
    average = MovingAverage(run.G_ema, run.G.network, config.ema)
    objective, augmentation = config.objective, config.augment
    take_d_step = partial(d_phase, run.G, run.D, objective=objective, augmentation=augmentation, autocast=autocast)
    take_g_step = partial(g_phase, run.G, run.D, objective=objective, augmentation=augmentation, autocast=autocast)
    try:
        while run.step < total_steps:
            set_learning_rates(run, config.learning_rate_factor(run.step, total_steps))
            for repeat in range(config.d_steps):
                real, y = stream.real(repeat)
                penalize = objective.penalizes(run.step * config.d_steps + repeat)
                sums.add(take_d_step(stream.micro_batches("d", repeat, real, y), penalize=penalize))
            sums.add(take_g_step(stream.micro_batches("g", 0, real, y)))
            run.step += 1
            average.update(run.step)
            progress.update(run.nimg)

            stop = dist.any_rank(signals.received is not None)
            last = run.step == total_steps
            saving = stop or last or due("checkpoint_every", run.step)
            verdict = HEALTHY
            if saving or due("stats_every", run.step):
                verdict = observer.record(sums, progress)
            if due("health_every", run.step) and verdict is HEALTHY:
                verdict = observer.check()
            if verdict.kind in ("collapsed", "ruined") and must_roll_back(run, observer, verdict):
                stream.close()
                roll_back(run, observer, verdict)
                stream = Stream(run, micro_size, num_micro)
                progress.restart(run.nimg)
                continue
            observer.poll()
            if due("grid_every", run.step):
                observer.draw()
            if due("eval_every", run.step):
                observer.judge()
            if saving and not last:
                observer.save(wait=stop)
            if stop and not last:
                message = f"stopped at step {run.step} of {total_steps}, saved in {path}; the same command goes on"
                raise Stopped(message, 128 + (signals.received or signal.SIGTERM))
        observer.finish(progress)
    finally:
        stream.close()
        progress.close()
        signals.close()
        observer.close()
    return path


def open_data(config: TrainConfig) -> TrainingFile:
    """Open the training file, building it first where the configuration names its source, and check that it fits.

    Raises:
        FileNotFoundError: If there is no such file and no source.
        ValueError: If its resolution or number of classes is not the networks'.
    """
    path = Path(config.data.path)
    resolution, num_classes = config.generator.resolution, config.generator.num_classes

    def build_missing() -> None:
        if path.is_file():
            return
        if not config.data.source:
            raise FileNotFoundError(
                f"{config.data.path or 'data.path'}: no training file; "
                f"build it with: hamgan data build FOLDER {path} --resolution {resolution}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        build(config.data.source, path, resolution=resolution, resize=config.data.resize)

    dist.on_rank0(build_missing)
    data = TrainingFile(path)
    if data.resolution != resolution:
        raise ValueError(
            f"{path}: holds images of {data.resolution}x{data.resolution}; generator.resolution is {resolution}"
        )
    if data.num_classes > num_classes:
        raise ValueError(f"{path}: has {data.num_classes} classes; generator.num_classes is {num_classes}")
    return data


def open_folder(
    config: TrainConfig, preset: str, root: Path, run_dir: Path | None
) -> tuple[Path, GanRunFolder | None, Path | None]:
    """Open the run folder on the main process.

    Returns:
        Its path; the folder, None on the other processes; and the newest whole checkpoint, None where there is none.
    """
    folders: list[GanRunFolder] = []

    def opening() -> tuple[Path, Path | None]:
        folders.append(GanRunFolder(run_dir or run_folder.choose(root, preset, config), config))
        return folders[0].path, folders[0].newest_checkpoint()

    path, newest = dist.on_rank0(opening)
    return path, folders[0] if folders else None, newest


def must_roll_back(run: Run, observer: Observer, verdict: Verdict) -> bool:
    """Say what a collapse is, and whether the run is rolled back; False: it goes on all the same.

    Raises:
        ValueError: If it is to stop.
    """
    config, reasons = run.config.sentinel, "; ".join(verdict.reasons)
    if config.action == "rollback" and run.sentinel.rollbacks < config.max_rollbacks:
        return True
    if config.action == "rollback":
        line = f"the run collapsed at step {run.step} after {run.sentinel.rollbacks} rollbacks: {reasons}"
    elif config.action == "stop" or verdict.kind == "ruined":
        line = f"training diverged at step {run.step}: {reasons}"
    else:
        observer.warn(f"collapse: {reasons}")
        return False
    observer.note("stop", line)
    raise ValueError(f"{line}; lower the learning rates, or sentinel.lr_factor")


def roll_back(run: Run, observer: Observer, verdict: Verdict) -> None:
    """Put the run back to its last healthy checkpoint, or to its beginning, with smaller learning rates and other noise."""
    before, collapsed_at = run.sentinel, run.step
    newest = dist.on_rank0(observer.newest_healthy)
    if newest is not None:
        restore(run, checkpoint.load_tensors(newest))
    else:
        begin_again(run)
    run.sentinel.rollbacks, run.sentinel.suspicious = before.rollbacks + 1, 0
    observer.rolled_back(collapsed_at, "; ".join(verdict.reasons))

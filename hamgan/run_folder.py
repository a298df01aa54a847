"""The folder of one training run, of whatever: what lies in it, how it is found again, and who may write to it."""

import fcntl
import json
import math
import os
import platform
import re
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import torch
from torch.utils.tensorboard import SummaryWriter

from hamgan import __version__, checkpoint
from hamgan import config as configuration
from hamgan.nn import kernel_library

C = TypeVar("C")

CONFIG = "config.toml"


def fixed_differences(old: C, new: C, free_keys: tuple[str, ...]) -> list[str]:
    """List the keys, with both values, that differ though a run cannot change them on its way.

    Args:
        old: A run's configuration.
        new: Another of its class.
        free_keys: Keys, or beginnings of keys, that may change.
    """
    return [row for row in configuration.difference(old, new) if not row.startswith(free_keys)]


def read_config(path: Path, kind: type[C]) -> C:
    """Read the configuration of a run folder.

    Raises:
        FileNotFoundError: If the folder is not a run's.
        ValueError: If its configuration is damaged, or one of another kind of run.
    """
    file = path / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{path}: not a run folder (it has no {CONFIG})")
    return configuration.from_mapping(kind, configuration.read_preset(file), str(file))


def choose(root: Path, preset: str, config: Any, free_keys: tuple[str, ...]) -> Path:
    """Return the newest run of a preset whose fixed keys are the same, or the next number where there is none."""
    runs = sorted(path for path in root.glob("[0-9]*-*") if re.fullmatch(r"\d{5}-.+", path.name))
    for path in reversed(runs):
        if path.name[6:] == preset and _is_run_of(path, config, free_keys):
            return path
    number = 1 + max((int(path.name[:5]) for path in runs), default=-1)
    return root / f"{number:05d}-{preset}"


def _is_run_of(path: Path, config: Any, free_keys: tuple[str, ...]) -> bool:
    """Say whether a folder's run can go on with a configuration; one that cannot be read is another run."""
    try:
        return not fixed_differences(read_config(path, type(config)), config, free_keys)
    except (ValueError, OSError):
        return False


def checkpoints(path: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first."""
    return sorted(path.glob("checkpoint-*.pt"))


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's or snapshot's name."""
    return int(path.stem.rpartition("-")[2])


def prune(paths: list[Path], newest: Path, keep: int, *, healthy_step: int = 0, keep_healthy: int = 0) -> None:
    """Remove what is no longer needed of paths whose names sort by step.

    Kept are the newest `keep` and, beside them, the newest `keep_healthy` of steps up to `healthy_step`. What lies behind the
    newest goes: a run has gone back behind it.

    Args:
        paths: What lies there.
        newest: Just written; always kept.
        keep: At least 1.
        healthy_step: The last step at which the run was known to be healthy.
        keep_healthy: How many up to that step, whatever their age.
    """
    earlier = [path for path in paths if path.name <= newest.name]
    healthy = [path for path in earlier if step_of(path) <= healthy_step]
    kept = {newest, *earlier[-keep:], *(healthy[-keep_healthy:] if keep_healthy else [])}
    for path in set(paths) - kept:
        path.unlink()


class RunFolder(Generic[C]):
    """A run's folder, open for writing on rank 0.

    Args:
        path: The folder; made if it does not exist.
        config: The run's configuration, a dataclass.
        free_keys: Keys of it, or beginnings of keys, that may change when the run is taken up again.
        keep_checkpoints: How many of the newest checkpoints are kept.
        pictures: Name of the folder of pictures in it.

    Raises:
        OSError: If it cannot be written.
        ValueError: If it belongs to a run of another configuration, or another process is training in it.
    """

    def __init__(
        self, path: Path, config: C, *, free_keys: tuple[str, ...], keep_checkpoints: int, pictures: str
    ) -> None:
        self.path = path
        self.config = config
        self.pictures = path / pictures
        self._keep_checkpoints = keep_checkpoints
        try:
            self.pictures.mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("w")
        except OSError as error:
            raise OSError(f"{path}: the run folder cannot be written ({error.strerror})") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{path}: another process is training in this run folder") from None
        if (path / CONFIG).is_file():
            rows = fixed_differences(read_config(path, type(config)), config, free_keys)
            if rows:
                raise ValueError(f"{path}: belongs to a run of another configuration: {'; '.join(rows[:3])}")
        for place in (path, self.pictures):
            checkpoint.remove_leftovers(place)
        _end_torn_line(path / "events.jsonl")
        _write_text(path / CONFIG, configuration.dump_toml(config))
        _write_text(path / "environment.json", json.dumps(_environment(), indent=2))
        self._log = (path / "log.txt").open("a", encoding="utf-8")
        self._board: SummaryWriter | None = None

    def close(self) -> None:
        """Close every file and let others train here."""
        if self._board is not None:
            self._board.close()
        self._log.close()
        self._lock.close()

    def say(self, message: str, file: IO[str] | None = None) -> None:
        """Print a line and keep it, with the time, in log.txt."""
        print(message, file=file or sys.stdout, flush=True)
        self._log.write(f"{datetime.now().isoformat(timespec='seconds')} {message}\n")
        self._log.flush()

    def record(self, step: int, row: Mapping[str, float]) -> None:
        """Append a row of statistics to stats.jsonl and to TensorBoard."""
        finite = {key: round(value, 6) if math.isfinite(value) else None for key, value in row.items()}
        self._append("stats.jsonl", {"step": step} | finite)
        if self._board is None:
            self._board = SummaryWriter(str(self.path), purge_step=step)
        for key, value in row.items():
            self._board.add_scalar(key, value, step)

    def record_metrics(self, step: int, row: Mapping[str, float]) -> None:
        """Append a row of evaluation to metrics.jsonl, stats.jsonl and TensorBoard."""
        self._append("metrics.jsonl", {"step": step} | dict(row))
        self.record(step, row)

    def event(self, step: int, event: str, reason: str, **more: float) -> None:
        """Keep what happened to the run in events.jsonl, which is never cut."""
        time = datetime.now().isoformat(timespec="seconds")
        self._append("events.jsonl", {"time": time, "step": step, "event": event, "reason": reason} | more)

    def _append(self, name: str, row: dict[str, Any]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def has_metrics(self, step: int) -> bool:
        """Say whether a row of evaluation was recorded at this step."""
        file = self.path / "metrics.jsonl"
        return file.is_file() and any(_row_step(line) == step for line in file.read_text("utf-8").splitlines())

    def forget_after(self, step: int) -> None:
        """Drop rows of statistics and metrics later than the step that a resumed run starts from."""
        for file in (self.path / "stats.jsonl", self.path / "metrics.jsonl"):
            if file.is_file():
                kept = [line for line in file.read_text("utf-8").splitlines() if _row_step(line) <= step]
                _write_text(file, "".join(f"{line}\n" for line in kept))

    def newest_checkpoint(self, last_step: int | None = None) -> Path | None:
        """Return the newest whole checkpoint, naming each damaged one that is passed over; None where there is none.

        Args:
            last_step: Of this step or earlier; None: of any.

        Raises:
            ValueError: If there are such checkpoints and all are damaged.
        """
        paths = [path for path in checkpoints(self.path) if last_step is None or step_of(path) <= last_step]
        for path in reversed(paths):
            try:
                checkpoint.verify(path)
                return path
            except checkpoint.DamagedFileError as error:
                self.say(f"warning: {error}; going back to the one before it", file=sys.stderr)
                self.event(step_of(path), "warning", str(error))
        if paths:
            raise ValueError(f"{self.path}: every checkpoint is damaged; move them away to start this run again")
        return None

    def save_checkpoint(
        self, step: int, state: dict[str, Any], *, healthy_step: int = 0, keep_healthy: int = 0
    ) -> None:
        """Save a checkpoint, then remove all but the newest `keep_checkpoints` and the healthy ones; see `prune`."""
        written = self.path / f"checkpoint-{step:08d}.pt"
        checkpoint.save(written, state)
        paths = checkpoints(self.path)
        prune(paths, written, self._keep_checkpoints, healthy_step=healthy_step, keep_healthy=keep_healthy)


def _write_text(path: Path, text: str) -> None:
    checkpoint.write_atomically(path, lambda file: file.write(text.encode()))


def _end_torn_line(path: Path) -> None:
    """End the last line of a file that a kill has cut short, so that the next one begins anew."""
    if path.is_file() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")


def _row_step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize  # a torn last line of a killed run


def _environment() -> dict[str, Any]:
    return {
        "hamgan": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "kernels": kernel_library.instructions(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "command": sys.argv,
    }

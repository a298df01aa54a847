"""The folder of one run: what lies in it, how it is found again, and who may write to it."""

import fcntl
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import torch
from torch.utils.tensorboard import SummaryWriter

from hamgan import __version__, checkpoint
from hamgan import config as configuration
from hamgan.training.config import FREE_KEYS, TrainConfig

CONFIG = "config.toml"


def fixed_differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """List the keys, with both values, that differ though a run cannot change them on its way."""
    return [row for row in configuration.difference(old, new) if not row.startswith(FREE_KEYS)]


def read_config(path: Path) -> TrainConfig:
    """Read the configuration of a run folder.

    Raises:
        FileNotFoundError: If the folder is not a run's.
        ValueError: If its configuration is damaged.
    """
    file = path / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{path}: not a run folder (it has no {CONFIG})")
    return configuration.from_mapping(TrainConfig, configuration.read_preset(file), str(file))


def choose(root: Path, preset: str, config: TrainConfig) -> Path:
    """Return the newest run of a preset whose fixed keys are the same, or the next number where there is none."""
    runs = sorted(path for path in root.glob("[0-9]*-*") if re.fullmatch(r"\d{5}-.+", path.name))
    for path in reversed(runs):
        if path.name[6:] == preset and _is_run_of(path, config):
            return path
    number = 1 + max((int(path.name[:5]) for path in runs), default=-1)
    return root / f"{number:05d}-{preset}"


def _is_run_of(path: Path, config: TrainConfig) -> bool:
    """Say whether a folder's run can go on with a configuration; one that cannot be read is another run."""
    try:
        return not fixed_differences(read_config(path), config)
    except (ValueError, OSError):
        return False


class RunFolder:
    """A run's folder, open for writing on rank 0.

    Args:
        path: The folder; made if it does not exist.
        config: The run's configuration.

    Raises:
        OSError: If it cannot be written.
        ValueError: If it belongs to a run of another configuration, or another process is training in it.
    """

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = path
        self.config = config
        try:
            (path / "samples").mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("w")
        except OSError as error:
            raise OSError(f"{path}: the run folder cannot be written ({error.strerror})") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{path}: another process is training in this run folder") from None
        if (path / CONFIG).is_file() and (rows := fixed_differences(read_config(path), config)):
            raise ValueError(f"{path}: belongs to a run of another configuration: {'; '.join(rows[:3])}")
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
        line = json.dumps({"step": step} | {key: round(value, 6) for key, value in row.items()})
        with (self.path / "stats.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self._board is None:
            self._board = SummaryWriter(str(self.path), purge_step=step)
        for key, value in row.items():
            self._board.add_scalar(key, value, step)

    def record_metrics(self, step: int, row: Mapping[str, float]) -> None:
        """Append a row of evaluation to metrics.jsonl, stats.jsonl and TensorBoard."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | dict(row)) + "\n")
        self.record(step, row)

    def forget_after(self, step: int) -> None:
        """Drop rows of statistics and metrics later than the step that a resumed run starts from."""
        for file in (self.path / "stats.jsonl", self.path / "metrics.jsonl"):
            if file.is_file():
                kept = [line for line in file.read_text("utf-8").splitlines() if _row_step(line) <= step]
                _write_text(file, "".join(f"{line}\n" for line in kept))

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        return sorted(self.path.glob("checkpoint-*.pt"))

    def newest_checkpoint(self) -> Path | None:
        """Return the newest whole checkpoint, naming each damaged one that is passed over; None where there is none.

        Raises:
            ValueError: If there are checkpoints and all are damaged.
        """
        paths = self.checkpoints()
        for path in reversed(paths):
            try:
                checkpoint.verify(path)
                return path
            except checkpoint.DamagedFileError as error:
                self.say(f"warning: {error}; going back to the one before it", file=sys.stderr)
        if paths:
            raise ValueError(f"{self.path}: every checkpoint is damaged; move them away to start this run again")
        return None

    def save_checkpoint(self, step: int, state: dict[str, Any]) -> None:
        """Save a checkpoint, then remove all but the newest `keep_checkpoints`.

        Later ones, which can only be damaged ones that this run has gone back behind, go too.
        """
        written = self.path / f"checkpoint-{step:08d}.pt"
        checkpoint.save(written, state)
        _prune(self.checkpoints(), written, self.config.log.keep_checkpoints)

    @property
    def best_path(self) -> Path:
        """Where the snapshot with the lowest quick evaluation lies."""
        return self.path / "best.safetensors"

    def save_snapshot(self, step: int, write: Callable[[Path], None]) -> None:
        """Let `write` put a snapshot at a path, then remove all but the newest `keep_snapshots`, and later ones."""
        written = self.path / f"snapshot-{step:08d}.safetensors"
        write(written)
        _prune(snapshots(self.path), written, self.config.log.keep_snapshots)


def snapshots(path: Path) -> list[Path]:
    """Return a run's snapshots, oldest first."""
    return sorted(path.glob("snapshot-*.safetensors"))


def _prune(paths: list[Path], newest: Path, keep: int) -> None:
    """Remove all but `keep` of the paths up to the newest, and all behind it; names sort by step."""
    kept = [path for path in paths if path.name <= newest.name][-keep:]
    for path in set(paths) - set(kept):
        path.unlink()


def _write_text(path: Path, text: str) -> None:
    checkpoint.write_atomically(path, lambda file: file.write(text.encode()))


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
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "command": sys.argv,
    }

"""Tiny runs to be disturbed, each attempt a process that trains for real: what `faults.py` stands on."""

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a forked process may not use its parent's threads

import numpy as np
import torch
import torch._dynamo  # like the loop below: imported before the forks, so that they need not
from PIL import Image

from hamgan import checkpoint, snapshot
from hamgan.cli import main as hamgan
from hamgan.data.build import build
from hamgan.training import loop  # noqa: F401

STEPS, SAVE_EVERY = 16, 2
PATIENCE = 300.0
"""Seconds after which an attempt that has not ended counts as hung."""
NOBODY = 65534
"""Whom a superuser becomes to meet a read-only folder at all."""

PRESET = f"""
duration = "{STEPS} steps"
batch_size = 8
micro_batch = 4
d_steps = 2
anneal = 0.5
precision = "bf16"
device = "cpu"
data.path = "{{data}}"
augment.kinds = ["color", "translation", "cutout"]

[log]
stats_every = "1 step"
grid_every = "5 steps"
health_every = "4 steps"
checkpoint_every = "{SAVE_EVERY} steps"
grid_columns = 2

[generator]
resolution = 32
channels = 4
num_classes = 3
z_dim = 16
embedding_dim = 8
context = "ham"
context_resolutions = [16]
ham.rank = 4

[discriminator]
resolution = 32
channels = 4
num_classes = 3
context = "ham"
context_resolutions = [16]
ham.rank = 4
"""


class Trap:
    """Kills this process by SIGKILL at a point of a save.

    Args:
        kind: byte: when so many bytes have been written; call: before or after so many flushes, renames and removals.
        at: How many; infinite: count only.
    """

    CALLS = ("fsync", "replace", "unlink", "chmod")

    def __init__(self, kind: str, at: float) -> None:
        self.kind, self.at = kind, at
        self.counts = {"byte": 0, "call": 0}

    def arm(self) -> None:
        """Replace this process's functions by ones that count."""
        fdopen = os.fdopen
        os.fdopen = lambda *values, **more: _CountingFile(fdopen(*values, **more), self)  # type: ignore[assignment]
        for name in self.CALLS:
            setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any, **more: Any) -> Any:
            self.count("call")
            result = function(*values, **more)
            self.count("call")
            return result

        return call

    def left(self, kind: str) -> float:
        """Return how many of a kind are left before the trap closes."""
        return self.at - self.counts[kind] if kind == self.kind else float("inf")

    def count(self, kind: str, amount: int = 1) -> None:
        """Count; does not return where the trap closes."""
        self.counts[kind] += amount
        if self.left(kind) <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


class _CountingFile:
    """A file opened for writing that tells a trap of its bytes."""

    def __init__(self, file: Any, trap: Trap) -> None:
        self._file, self._trap = file, trap

    def write(self, data: Any) -> int:
        left = self._trap.left("byte")
        if left <= len(data):
            self._file.write(bytes(data)[: int(left)])
            self._file.flush()
        self._trap.count("byte", len(data))
        return self._file.write(data)

    def __enter__(self) -> "_CountingFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def fork(work: Callable[[], int | None], log: Path, user: int | None = None) -> int:
    """Run `work` in a process of its own and return its number; its exit code is what `work` returns."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if user is not None:
            os.setgid(user)
            os.setuid(user)
        code = work() or 0
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(process: int, until: float) -> int | None:
    """Return the exit code (minus the signal, if it died of one), or None if it still runs at a moment."""
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.003)


def finish(process: int) -> int:
    """Wait for the end of a process; one that hangs is killed, and its code is 99."""
    code = wait(process, time.monotonic() + PATIENCE)
    if code is None:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return 99
    return code


@dataclass
class Case:
    """One folder of runs, and how it is trained in."""

    root: Path
    preset: Path
    num_processes: int = 1
    user: int | None = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.log = self.root.with_suffix(".log")
        self.log.touch()
        if self.user is not None:
            os.chown(self.root, self.user, self.user)

    def start(self, trap: Trap | None = None, counts: Path | None = None) -> list[int]:
        """Start training; return the processes."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])

        def work(rank: int) -> int:
            if self.num_processes > 1:
                size = str(self.num_processes)
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size, MASTER_PORT=port)
                os.environ.update(MASTER_ADDR="127.0.0.1")
            if trap is not None:
                trap.arm()
            code = hamgan(["train", str(self.preset), "--root", str(self.root)])
            if trap is not None and counts is not None:
                counts.write_text(json.dumps(trap.counts))
            return code

        return [fork(lambda rank=rank: work(rank), self.log, self.user) for rank in range(self.num_processes)]

    def finish(self) -> bool:
        """Train to the end; say whether all processes succeeded."""
        codes = [finish(process) for process in self.start()]
        return not any(codes)

    @property
    def run(self) -> Path:
        """The run folder."""
        return sorted(self.root.glob("[0-9]*-*"))[-1]

    def checkpoints(self) -> list[Path]:
        """The checkpoints that there are."""
        return sorted(self.root.glob("*/checkpoint-*.pt"))


def differences(one: Path, two: Path) -> list[str]:
    """Name what differs between two finished runs."""
    rows: list[str] = []

    def compare(a: Any, b: Any, where: str) -> None:
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            for key in a:
                compare(a[key], b[key], f"{where}/{key}")
        elif not (torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b):
            rows.append(where)

    def losses(run: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]

    name = f"checkpoint-{STEPS:08d}.pt"
    compare(*(checkpoint.load(run / name) for run in (one, two)), "checkpoint")
    compare(losses(one), losses(two), "stats.jsonl")
    grid = f"samples/{STEPS:08d}.png"
    compare(*((run / grid).read_bytes() for run in (one, two)), grid)
    weights = [snapshot.read(snapshot.find(run)).generator.state_dict() for run in (one, two)]
    compare(*map(dict, weights), "snapshot")
    if leftovers := [path.name for path in two.rglob("*.partial")]:
        rows.append(f"left behind: {', '.join(leftovers)}")
    return rows


@dataclass
class Bench:
    """What all faults share: the data, the undisturbed runs, and chance."""

    root: Path
    rng: random.Random
    preset: Path = field(init=False)
    seconds: dict[int, float] = field(default_factory=dict)
    """Of the undisturbed run, by the number of processes."""
    starting: float = 0.0
    """Seconds to its first row of statistics."""
    counts: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    number: int = 0

    def prepare(self) -> None:
        """Build the data and train undisturbed, once with one process and once with two."""
        self.preset = self.root / "faults.toml"
        self.preset.write_text(PRESET.format(data=self.root / "data.h5"))
        assert finish(fork(lambda: _build_data(self.root), self.root / "data.log")) == 0, "the data were not built"
        for size in (1, 2):
            case = Case(self.root / f"whole-{size}", self.preset, size)
            began = time.monotonic()
            counts = self.root / "counts.json" if size == 1 else None
            processes = case.start(Trap("byte", float("inf")) if size == 1 else None, counts)
            while size == 1 and not list(case.root.glob("*/stats.jsonl")):
                assert wait(processes[0], time.monotonic() + 0.002) is None, case.log.read_text()
                self.starting = time.monotonic() - began
            codes = [finish(process) for process in processes]
            assert not any(codes), case.log.read_text()
            self.seconds[size] = time.monotonic() - began
        self.counts = json.loads((self.root / "counts.json").read_text())

    def case(self, num_processes: int = 1, **more: Any) -> Case:
        """Return a fresh folder to train in."""
        self.number += 1
        return Case(self.root / f"case-{self.number:04d}", self.preset, num_processes, **more)

    def survived(self, case: Case, what: str) -> bool:
        """Train a disturbed run to its end and compare; a run that is not lost is removed."""
        if not case.finish():
            self.lost.append(f"{what}: did not end well, see {case.log}")
            return False
        whole = Case(self.root / f"whole-{case.num_processes}", self.preset).run
        found = case.root.with_suffix(".differences")
        compared = fork(lambda: bool(found.write_text("; ".join(differences(whole, case.run)))) and 0, case.log)
        if finish(compared) or found.read_text():
            self.lost.append(f"{what}: differs ({found.read_text() if found.is_file() else '?'}), see {case.root}")
            return False
        shutil.rmtree(case.root, ignore_errors=True)
        found.unlink()
        case.log.unlink()
        return True


def _build_data(root: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(18):
        folder = root / "source" / f"class{index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    build(root / "source", root / "data.h5", resolution=32, resize="none", workers=1)

"""How many faults does training survive? Disturbs tiny runs at random and compares their ends with the undisturbed one's.

Every attempt is a process that trains for real, by the command line's own entry, with all that an exact resume has to get
right: accumulation, augmentation, bf16, random ham bases, several D steps, the loader's thread, saves in the background. It
is forked from a process that has imported torch and done nothing with it, as importing takes longer than such a run.

A run is disturbed up to four times; then the same command is left alone to its end. It has survived if it ends with exit
code 0 and if every tensor of its last checkpoint (weights, buffers, moments, average), every logged loss, the last grid and
the last snapshot equal the undisturbed run's, bit for bit. One lost run counts all its faults as lost.

Run: python scripts/faults.py [--kills 240] [--others 10] [--seed 0] [--only WORD]
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
FAULTS_A_RUN = 4
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


Fault = Callable[[Bench, Case], bool]
"""Disturbs a run once; returns whether the fault struck (False: the run had ended before)."""


def kill_at_a_moment(bench: Bench, case: Case, share: float = 1.0, victims: int | None = None) -> bool:
    """SIGKILL after a random time, of all processes or of some; those that are left must leave by themselves."""
    limit = bench.seconds[case.num_processes] if share >= 1 else bench.starting * 1.1
    processes = case.start()
    time.sleep(bench.rng.uniform(0, limit))
    struck = False
    for process in bench.rng.sample(processes, victims or len(processes)):
        if wait(process, 0) is None:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            struck = True
        processes.remove(process)
    for process in processes:
        if (code := finish(process)) not in ((0, 1, 2) if struck else (0,)):
            bench.lost.append(f"a process that was left ended with {code}, see {case.log}")
    if not struck:
        bench.seconds[case.num_processes] *= 0.9  # the machine has become faster
    return struck


def kill_within_a_save(bench: Bench, case: Case, kind: str) -> bool:
    """SIGKILL at a random byte of what is written, or around a random flush, rename or removal."""
    (process,) = case.start(Trap(kind, bench.rng.randint(1, bench.counts[kind] // 2)))
    return finish(process) == -signal.SIGKILL


def send(bench: Bench, case: Case, number: signal.Signals) -> bool:
    """Send a signal after a random time."""
    (process,) = case.start()
    if (code := wait(process, time.monotonic() + bench.rng.uniform(0, bench.seconds[1]))) is None:
        os.kill(process, number)
        code = finish(process)
    if code not in (0, 128 + number, -number):  # -number: so early that Python did not listen yet
        bench.lost.append(f"{number.name}: exit code {code}, see {case.log}")
    return code != 0


def damage_newest(bench: Bench, case: Case, *, cut: bool) -> bool:
    """Kill, then flip a byte of the newest checkpoint, or cut it short."""
    (process,) = case.start()
    while wait(process, time.monotonic() + 0.02) is None and len(case.checkpoints()) < 2:
        pass
    if wait_or_kill(process) == 0:
        return False
    newest = case.checkpoints()[-1]
    data = bytearray(newest.read_bytes())
    place = bench.rng.randrange(len(data))
    if cut:
        del data[place:]
    else:
        data[place] ^= 1 << bench.rng.randrange(8)
    newest.write_bytes(data)
    return True


def wait_or_kill(process: int) -> int:
    """Kill a process that still runs; return its exit code."""
    try:
        os.kill(process, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    except (ProcessLookupError, ChildProcessError):
        return 0


def fill_disk(bench: Bench, case: Case) -> bool:
    """Fill the disk from a random moment on, but for a few random bytes; then make room again."""
    (process,) = case.start()
    struck = wait(process, time.monotonic() + bench.rng.uniform(0, bench.seconds[1])) is None
    ballast = case.root / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError:
                pass
        file.truncate(max(file.tell() - bench.rng.choice((0, 0, bench.rng.randrange(200_000))), 0))
    if struck and (code := finish(process)) not in (0, 2):
        bench.lost.append(f"full disk: exit code {code}, see {case.log}")
    ballast.unlink()
    return struck


def forbid_writing(bench: Bench, case: Case) -> bool:
    """Forbid writing into the folders from a random moment on; then allow it again."""
    (process,) = case.start()
    struck = wait(process, time.monotonic() + bench.rng.uniform(0, bench.seconds[1])) is None
    folders = [case.root, *(path for path in case.root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    if struck and (code := finish(process)) not in (0, 2):
        bench.lost.append(f"read-only folder: exit code {code}, see {case.log}")
    for folder in folders:
        folder.chmod(0o755)
    return struck


@contextmanager
def small_disk(case: Case) -> Iterator[None]:
    """Mount a small disk of memory over a case's folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(case.root)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(case.root)], check=True)


def trial(bench: Bench, what: str, fault: Fault, wanted: int, **more: Any) -> tuple[int, int]:
    """Disturb runs until a fault has struck so often; return (tried, survived)."""
    tried = survived = 0
    while tried < wanted:
        case, struck = bench.case(**more), 0
        for _ in range(min(FAULTS_A_RUN, wanted - tried)):
            if not fault(bench, case):
                break
            struck += 1
        complaints = len(bench.lost)
        whole = bench.survived(case, what) and len(bench.lost) == complaints
        tried, survived = tried + struck, survived + (struck if whole else 0)
    return tried, survived


def disk_trial(bench: Bench, what: str, fault: Fault, wanted: int) -> tuple[int, int]:
    """`trial` on small disks, one fault a run."""
    tried = survived = 0
    while tried < wanted:
        case = bench.case()
        with small_disk(case):
            struck = fault(bench, case)
            survived += struck and bench.survived(case, what)
            tried += struck
    return tried, survived


def main() -> int:
    """Try all faults and print the table; the exit code is 1 if a run was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=240, help="SIGKILLs, of all kinds together")
    parser.add_argument("--others", type=int, default=10, help="how often each other fault is tried")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only the faults whose name has this in it")
    options = parser.parse_args()
    kills = {
        "SIGKILL at any moment": (0.25, kill_at_a_moment, 1),
        "SIGKILL at any byte of a file that is saved": (0.25, lambda b, c: kill_within_a_save(b, c, "byte"), 1),
        "SIGKILL around any flush, rename or removal": (0.2, lambda b, c: kill_within_a_save(b, c, "call"), 1),
        "SIGKILL while starting or resuming": (0.15, lambda b, c: kill_at_a_moment(b, c, 0.0), 1),
        "SIGKILL of two processes of two": (0.075, kill_at_a_moment, 2),
        "SIGKILL of one process of two": (0.075, lambda b, c: kill_at_a_moment(b, c, victims=1), 2),
    }
    others: dict[str, Fault] = {
        "a byte flipped in the newest checkpoint": lambda b, c: damage_newest(b, c, cut=False),
        "the newest checkpoint cut short": lambda b, c: damage_newest(b, c, cut=True),
        "disk full from any moment on": fill_disk,
        "folder read-only from any moment on": forbid_writing,
        "SIGTERM at any moment": lambda b, c: send(b, c, signal.SIGTERM),
        "SIGUSR1 at any moment": lambda b, c: send(b, c, signal.SIGUSR1),
    }
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    root.chmod(0o755)
    bench = Bench(root, random.Random(options.seed))
    bench.prepare()
    print(
        f"an undisturbed run of {STEPS} steps: {bench.seconds[1]:.1f} s, with two processes {bench.seconds[2]:.1f} s\n"
    )
    print("| fault | times tried | survived |\n|---|---|---|", flush=True)
    sums = [0, 0]

    def row(name: str, got: tuple[int, int]) -> None:
        print(f"| {name} | {got[0]} | {got[1]} |", flush=True)

    for name, (share, fault, size) in kills.items():
        if options.only in name and (wanted := round(options.kills * share)):
            got = trial(bench, name, fault, wanted, num_processes=size)
            sums = [sums[0] + got[0], sums[1] + got[1]]
            row(name, got)
    if sums[0]:
        row("all SIGKILLs", (sums[0], sums[1]))
    for name, fault in others.items():
        if options.only not in name or not options.others:
            continue
        if fault is fill_disk and os.getuid():
            print(f"| {name} | not tried: mounting a small disk needs a superuser | |")
        elif fault is fill_disk:
            row(name, disk_trial(bench, name, fault, options.others))
        else:
            user = NOBODY if fault is forbid_writing and os.getuid() == 0 else None
            row(name, trial(bench, name, fault, options.others, user=user))
    print(*(f"lost: {line}" for line in bench.lost), sep="\n", file=sys.stderr)
    if not bench.lost:
        shutil.rmtree(root)
    return bool(bench.lost)


if __name__ == "__main__":
    sys.exit(main())

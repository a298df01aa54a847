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
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fault_bench import NOBODY, STEPS, Bench, Case, Trap, finish, wait

FAULTS_A_RUN = 4

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

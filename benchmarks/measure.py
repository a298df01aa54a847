"""What several benchmarks measure with: calls that take turns, and the memory that is alive. Not a benchmark itself."""

import contextlib
import ctypes
import gc
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

LARGE_BLOCK = 2**16
"""Bytes from which malloc takes a block from the system and gives it back at once."""


def seconds(work: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    result = work()
    taken = time.perf_counter() - start
    del result  # freeing it is not timed
    return taken


def take_turns(works: Mapping[str, Callable[[], object]], repeats: int, *, warmup: int = 1) -> dict[str, float]:
    """Return the median seconds of each, called in turns, so that what else the machine does hits all alike.

    Args:
        works: What to time, by name.
        repeats: Timed rounds.
        warmup: Rounds before them.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(warmup + repeats):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: statistics.median(values[warmup:]) for name, values in times.items()}


def take_turns_apart(
    file: str, sides: Mapping[str, Sequence[str]], repeats: int, *, warmup: int = 1
) -> dict[str, float]:
    """Return the median seconds of each side, as `take_turns`, but each in a process of its own, with a heap of its own.

    Args:
        file: A benchmark's.
        sides: The arguments, by name, with which it calls `serve`.
        repeats: Timed rounds.
        warmup: Rounds before them.
    """
    with contextlib.ExitStack() as stack:
        processes = {}
        for name, arguments in sides.items():
            command = [sys.executable, file, *arguments]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            processes[name] = stack.enter_context(process)

        def ask(name: str) -> float:
            process = processes[name]
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("\n")
            if not (answer := process.stdout.readline()):
                raise RuntimeError(f"the process of {name} ended with {process.wait()}")
            return float(answer)

        rounds = [{name: ask(name) for name in processes} for _ in range(warmup + repeats)]
        for process in processes.values():
            assert process.stdin is not None
            process.stdin.close()
    return {name: statistics.median(times[name] for times in rounds[warmup:]) for name in sides}


def serve(work: Callable[[], object]) -> None:
    """Call the work at each line of the standard input, and print how long it took: the other end of `take_turns_apart`.

    A call that is not timed comes before, as a step of training follows another: meanwhile this process was idle.
    """
    for _ in sys.stdin:
        work()
        print(seconds(work), flush=True)


def status_mb(key: str) -> float:
    """Return a size that Linux keeps of this process, MB: VmRSS, or VmHWM, the highest so far."""
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024 / 1e6


def print_memory(work: Callable[[], object]) -> None:
    """Print, for `memory_of`, what later calls of this process's work add at the most to what is held after the first."""
    work()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    held = status_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    work()
    work()
    highest = status_mb("VmHWM")
    print(f"memory {highest - held:.1f} {highest:.1f}")


def memory_of(file: str, *arguments: str) -> tuple[float, float]:
    """Return the memory of a process of its own, MB: (added at the most, highest in all).

    malloc is told to give every large block back at once, so that the figures count what is alive, not what the heap keeps.

    Args:
        file: A benchmark's.
        arguments: With which it calls `print_memory`.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "MALLOC_MMAP_THRESHOLD_": str(LARGE_BLOCK),
    }
    command = [sys.executable, file, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    [(added, highest)] = re.findall(r"^memory (-?[\d.]+) ([\d.]+)$", done.stdout, re.MULTILINE)
    return float(added), float(highest)

"""Decoding processes, fed through pipes.

Fresh interpreters instead of forks, since forking a process that has threads (torch, CUDA) may deadlock; and not
multiprocessing's, which would run the caller's script again in each. A process ends when its pipe does, so none
outlives a killed builder.
"""

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

from hamgan.data.worker import Block, Job

Task = tuple[int, list[Any]]  # index of the first image, and the images' locators


def build_blocks(
    job: Job, numbers: list[int], task: Callable[[int], Task], workers: int
) -> Generator[tuple[int, Block], None, None]:
    """Decode blocks in processes and yield (number, block) as they come.

    Each process has one block at a time, so memory does not grow with the number of images.

    Args:
        job: What all blocks have in common.
        numbers: The blocks to decode.
        task: Makes the task of a block.
        workers: Number of processes.

    Raises:
        OSError: If the data file cannot be written or a process dies.
    """
    todo = iter(numbers)
    lock = threading.Lock()
    results: queue.Queue[tuple[int, Block] | Exception] = queue.Queue()
    processes = [_start() for _ in range(workers)]
    threads = [
        threading.Thread(target=_feed, args=(process, job, todo, lock, task, results), daemon=True)
        for process in processes
    ]
    try:
        for thread in threads:
            thread.start()
        for _ in numbers:
            result = results.get()
            if isinstance(result, Exception):
                raise result
            yield result
    finally:
        for process in processes:
            process.kill()
        for thread in threads:
            thread.join()
        for process in processes:
            process.wait()


def _start() -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    # One thread each: the other cores are taken by its siblings.
    environment |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    # Keep freed buffers: giving them back to the system after every image costs a twentieth of the time (glibc).
    environment |= {"MALLOC_TRIM_THRESHOLD_": str(2**28), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
    command = [sys.executable, "-c", "from hamgan.data.worker import main; main()"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _feed(process: subprocess.Popen[bytes], job: Job, todo: Iterator[int], lock: threading.Lock,
          task: Callable[[int], Task], results: queue.Queue[tuple[int, Block] | Exception]) -> None:  # fmt: skip
    """Give one process a block after the other and pass on what it answers."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError), process.stdin, process.stdout:
        try:
            pickle.dump(job, process.stdin)
            while True:
                with lock:
                    number = next(todo, None)
                if number is None:
                    return
                pickle.dump(task(number), process.stdin)
                process.stdin.flush()
                answer = pickle.load(process.stdout)
                results.put(answer if isinstance(answer, Exception) else (number, answer))
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            message = "a decoding process died (out of memory?); what is done is kept, run the same command again"
            results.put(OSError(message))
        except Exception as error:
            results.put(error)

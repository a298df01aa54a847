"""How much CPU time does `hamgan --help` take, against importing torch alone?

Run: python benchmarks/startup.py
"""

import resource
import statistics
import subprocess
import sys

REPEATS = 5


def cpu_seconds(*arguments: str) -> float:
    """Return the median CPU time, user and system, of a Python process."""
    times = []
    for _ in range(REPEATS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(times)


def main() -> None:
    """Print both and their ratio."""
    ours, torch = cpu_seconds("-m", "hamgan", "--help"), cpu_seconds("-c", "import torch")
    print(f"hamgan --help: {ours:.3f} s of CPU time; import torch: {torch:.3f} s; ratio {ours / torch:.3f}")


if __name__ == "__main__":
    main()

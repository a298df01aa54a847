"""A few of `fuzz_data`'s mutated files of every kind, in a process of their own: a crash is a failure too."""

import subprocess
import sys
from pathlib import Path


def test_mutated_data_files_are_read_or_refused_in_one_line() -> None:
    script = Path(__file__).parent / "fuzz_data.py"
    command = [sys.executable, "-W", "ignore", script, "all", "40", "100000"]
    got = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert got.returncode == 0, got.stdout + got.stderr[-500:]
    assert got.stdout.count(" 0 wrong") == 9, got.stdout

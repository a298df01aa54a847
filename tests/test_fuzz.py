"""A few of `fuzz_files`' mutated files of every kind, in a process of their own: a crash is a failure too."""

import subprocess
import sys
from pathlib import Path


def test_mutated_files_are_loaded_or_refused_in_one_line() -> None:
    script = Path(__file__).parent / "fuzz_files.py"
    command = [sys.executable, "-W", "ignore", script, "all", "80", "100000"]
    got = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert got.returncode == 0, got.stdout + got.stderr[-500:]
    assert got.stdout.count(" 0 wrong") == 3, got.stdout

"""The board: many exchanges between processes that hurry and dawdle, and one that is left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hamgan.nn import exchange
from hamgan.nn.exchange import SLOT, Board

NUM_PROCESSES, NUM_EXCHANGES = 3, 3000
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the board needs Linux's /proc")


def message(rank: int, turn: int) -> torch.Tensor:
    """What a process leaves in a turn: of a size that all know, and of numbers that only it has."""
    size = random.Random(turn).choice((1, 2, 7, 64, SLOT // 4))
    return torch.full((size,), float(rank * NUM_EXCHANGES + turn))


def one_process(path: Path, rank: int) -> None:
    """Meet the others, then exchange."""
    (path.parent / f"{rank}.pid").write_text(str(os.getpid()))
    files = [path.parent / f"{peer}.pid" for peer in range(NUM_PROCESSES)]
    while not all(file.exists() and file.read_text() for file in files):
        time.sleep(0.01)
    board = Board(path, rank, [int(file.read_text()) for file in files])
    rng = random.Random(rank)
    for turn in range(NUM_EXCHANGES):
        if rng.random() < 0.002:
            time.sleep(rng.uniform(0, 0.03))
        parts = board.gather(message(rank, turn))
        assert all(torch.equal(part, message(peer, turn)) for peer, part in enumerate(parts)), turn


def start(path: Path) -> list["subprocess.Popen[str]"]:
    path.write_bytes(bytes(Board.num_bytes(NUM_PROCESSES)))
    command = [sys.executable, __file__, str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True, env=environment)
        for rank in range(NUM_PROCESSES)
    ]


def test_everyone_gets_what_the_others_left_in_that_turn(tmp_path: Path) -> None:
    for process in start(tmp_path / "board"):
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err


def test_who_waits_for_a_process_that_is_gone_is_told(tmp_path: Path) -> None:
    processes = start(tmp_path / "board")
    while len(list(tmp_path.glob("*.pid"))) < NUM_PROCESSES:
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGKILL)  # not yet waited for: a zombie
    for process in (processes[0], processes[2]):
        _, err = process.communicate(timeout=60)
        assert process.returncode != 0 and "Connection closed by peer" in err
    processes[1].communicate()


def test_without_a_group_of_several_there_is_no_board() -> None:
    assert exchange._board is None


if __name__ == "__main__":
    one_process(Path(sys.argv[1]), int(sys.argv[2]))

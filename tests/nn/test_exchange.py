"""The board: many exchanges and sums between processes that hurry and dawdle, and one that is left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from hamgan.nn import exchange
from hamgan.nn.exchange import SLOT, Board

NUM_PROCESSES, NUM_EXCHANGES = 3, 3000
RANKS = range(NUM_PROCESSES)
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the board needs Linux's /proc")


def message(rank: int, turn: int) -> torch.Tensor:
    """What a process leaves in a turn: of a size that all know, and of numbers that only it has."""
    size = random.Random(turn).choice((1, 2, 7, 64, SLOT // 4))
    return torch.full((size,), float(rank * NUM_EXCHANGES + turn))


def gradients(rank: int, turn: int) -> list[torch.Tensor]:
    """What a process adds in a turn: a scalar, nothing, what fills more than two slots, and a map in its own layout."""
    torch.manual_seed(rank * NUM_EXCHANGES + turn)
    dtype = torch.bfloat16 if turn % 200 else torch.float32
    large = torch.randn(2 * SLOT // dtype.itemsize + 3)
    layout = torch.randn(2, 3, 5, 7).to(memory_format=torch.channels_last)
    return [tensor.to(dtype) for tensor in (torch.randn(()), torch.empty(0), large, layout, torch.randn(1, 4))]


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
        if turn % 100 == 0:
            sums = gradients(rank, turn)
            board.add_up(sums)
            expected = [
                sum(parts[1:], parts[0]) for parts in zip(*map(partial(gradients, turn=turn), RANKS), strict=True)
            ]
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(sums, expected, strict=True)), turn
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

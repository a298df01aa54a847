"""Batch norm over two processes is that of the whole batch, forward and backward; sums are the same on both.

Of 16 channels the compiled kernels may take it, of 5 torch's; and one process may be without them.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as torch_dist

from hamgan.nn import exchange
from hamgan.nn.norm import BatchStatistics

NUM_PROCESSES = 2


def batch(dtype: torch.dtype, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, channels, 7, 6, generator=generator)
    scale, shift = torch.ones(channels), torch.zeros(channels)
    scale[:5] = torch.tensor([1.0, 0.01, 3.0, 1.0, 10.0])
    shift[:5] = torch.tensor([0.0, 1.0, -50.0, 1e3, 0.0])  # far from zero, where sums of squares cancel
    x = x * scale[:, None, None] + shift[:, None, None]
    weight = torch.randn(8, channels, 7, 6, generator=generator)
    return tuple(t.to(dtype).contiguous(memory_format=torch.channels_last) for t in (x, weight))  # type: ignore[return-value]


def pass_through(x: torch.Tensor, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    layer = BatchStatistics(x.shape[1], eps=1e-5, momentum=0.1, cross_replica=True)
    if x.dtype == torch.float64:
        layer = layer.double()
    x = x.clone().requires_grad_()
    y = layer(x)
    ((y * weight).float().sum() + y.float().square().sum()).backward()
    assert x.grad is not None
    return {"y": y.detach(), "grad": x.grad, "mean": layer.running_mean, "var": layer.running_var}


def one_process(folder: str, rank: int, dtype: torch.dtype, channels: int, *, board: bool) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    torch_dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=NUM_PROCESSES)
    if board:
        exchange.open_board()
        assert (exchange._board is not None) == (platform.machine() in exchange.ORDERED)
    x, weight = (part.chunk(NUM_PROCESSES)[rank] for part in batch(dtype, channels))
    sums = [x.clone(), weight.clone()]
    exchange.add_up(sums)
    torch.save(pass_through(x, weight) | dict(zip(("x", "weight"), sums, strict=True)), Path(folder) / f"{rank}.pt")
    torch_dist.destroy_process_group()


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.bfloat16, 0.03)])  # 1e3 is rounded to 6e-5
@pytest.mark.parametrize(
    ("board", "channels", "without_kernels"), [(True, 5, 0), (False, 5, 0), (True, 16, 0), (False, 16, 1)]
)
def test_two_processes_equal_one(
    dtype: torch.dtype, atol: float, board: bool, channels: int, without_kernels: int, tmp_path: Path
) -> None:
    command = [sys.executable, __file__, str(tmp_path), str(dtype).removeprefix("torch."), str(channels)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(int(board))],
            env=os.environ | ({"HAMGAN_KERNELS": "0"} if rank < without_kernels else {}),
        )
        for rank in range(NUM_PROCESSES)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(NUM_PROCESSES)]
    x, weight = batch(dtype, channels)
    expected = pass_through(x.double(), weight.double()) if dtype == torch.float32 else pass_through(x, weight)
    for key, whole in zip(("x", "weight"), (x, weight), strict=True):
        assert all(torch.equal(part[key], torch.add(*whole.chunk(NUM_PROCESSES))) for part in parts), key
    for key in ("mean", "var"):
        assert torch.equal(parts[0][key], parts[1][key])
        torch.testing.assert_close(parts[0][key].double(), expected[key].double(), rtol=1e-5, atol=1e-6)
    for key in ("y", "grad"):
        got = torch.cat([part[key] for part in parts])
        assert got.dtype == dtype
        scale = expected[key].abs().amax((0, 2, 3), keepdim=True).double()
        assert ((got.double() - expected[key].double()).abs() / scale).max() < atol, key


def test_local_statistics_ask_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_dist, "is_initialized", lambda: True)
    monkeypatch.setattr(torch_dist, "get_world_size", lambda *_: 2)
    layer = BatchStatistics(5, eps=1e-5, momentum=0.1, cross_replica=False)
    x, _ = batch(torch.float32, 5)
    expected = torch.nn.functional.batch_norm(x, None, None, training=True, eps=1e-5)
    assert torch.equal(layer(x), expected) and not layer.spans_replicas()
    layer.cross_replica = True
    assert layer.spans_replicas() and not layer.eval().spans_replicas()


if __name__ == "__main__":
    folder, dtype, channels, rank, board = sys.argv[1:]
    one_process(folder, int(rank), getattr(torch, dtype), int(channels), board=board == "1")

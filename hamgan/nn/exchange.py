"""Tensors between the processes of a run, fast.

Batch norm across processes asks for the others' numbers at every layer, and a step waits each time. gloo takes 0.2 to 2 ms for
that, most of it waking threads. Processes on the CPU of one machine therefore leave their numbers on a board, memory that all
of them see, and look at it until the others have come. Gradients go the same way, a boardful at a time.
"""

import os
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as torch_dist
from torch import Tensor

MAX_PEERS = 8
"""Processes, at most, among which everyone writes to everyone."""
SLOT = 1 << 19
"""Bytes that a process can leave on the board at a time."""
SPIN_SECONDS, NAP_SECONDS, LOOK_SECONDS = 0.02, 0.0005, 1.0
"""How long to look without a pause, the pauses after that, and how often to see whether the others still live."""
PATIENCE_SECONDS = 7200.0
"""Long, as rank 0 may be evaluating or building its data."""
ORDERED = ("x86_64", "AMD64")
"""Processors on which one process sees another's writes in their order."""


class Board:
    """Memory shared by the processes of one machine, two slots a process, used in turn.

    A process can be one exchange ahead of another, never two: to go on it needs what the other leaves after having read.

    Args:
        path: A file of `num_bytes(size)` zeros, on memory.
        rank: This process.
        pids: Process numbers by rank.
    """

    def __init__(self, path: Path, rank: int, pids: list[int]) -> None:
        size = len(pids)
        memory = torch.from_file(str(path), shared=True, size=self.num_bytes(size), dtype=torch.uint8)
        flags, slots = memory[: 128 * size].view(torch.int64), memory[128 * size :]
        # A cache line for each flag.
        self._flags = [[flags[8 * (half * size + peer)] for peer in range(size)] for half in (0, 1)]
        self._slots = [list(part.view(size, SLOT)) for part in slots.view(2, -1)]
        self._rank, self._pids, self._count = rank, pids, 0

    @staticmethod
    def num_bytes(size: int) -> int:
        """Return how large the file must be."""
        return 2 * size * (64 + SLOT)

    def gather(self, x: Tensor) -> list[Tensor]:
        """As the module's `gather`, for at most SLOT bytes."""
        slots = self._turn()
        num = x.numel() * x.element_size()
        slots[self._rank][:num].copy_(x.view(-1).view(torch.uint8))
        self._meet()
        return [
            x if peer == self._rank else slot[:num].clone().view(x.dtype).view(x.shape)
            for peer, slot in enumerate(slots)
        ]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """As the module's `add_up`, for tensors of one dtype, dense and laid out alike on all processes."""
        for bucket in _buckets(tensors):
            sizes = [part.numel() for part in bucket]
            shares = [
                list(slot[: sum(sizes) * bucket[0].element_size()].view(bucket[0].dtype).split(sizes))
                for slot in self._turn()
            ]
            torch._foreach_copy_(shares[self._rank], bucket)
            self._meet()
            # By rank, so that all have the same sum to the last bit; of the first two the order does not matter.
            first = min(self._rank, 1)
            if self._rank > 1:
                torch._foreach_copy_(bucket, shares[first])
            for peer in (1 - first, *range(2, len(shares))):
                torch._foreach_add_(bucket, shares[peer])

    def _turn(self) -> list[Tensor]:
        """Begin an exchange; return its slots, by rank."""
        self._count += 1
        return self._slots[self._count % 2]

    def _meet(self) -> None:
        """Say that this process's slot is written, and wait until all are."""
        flags = self._flags[self._count % 2]
        flags[self._rank].fill_(self._count)
        for peer, flag in enumerate(flags):
            if peer != self._rank and flag.item() != self._count:
                self._wait(flag, peer)

    def _wait(self, flag: Tensor, peer: int) -> None:
        began = looked = time.monotonic()
        while flag.item() != self._count:
            now = time.monotonic()
            if now - began < SPIN_SECONDS:
                os.sched_yield()
                continue
            time.sleep(NAP_SECONDS)
            if now - looked > LOOK_SECONDS:
                looked = now
                if now - began > PATIENCE_SECONDS:
                    raise RuntimeError(f"Connection closed by peer: process {self._pids[peer]} did not come")
                if not _lives(self._pids[peer]):
                    raise RuntimeError(f"Connection closed by peer: process {self._pids[peer]} is gone")


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Cut tensors, seen as the values in their memory, into lists of parts that fill a slot each."""
    bucket: list[Tensor] = []
    room = SLOT
    for tensor in tensors:
        rest = tensor.as_strided((tensor.numel(),), (1,))
        while rest.numel():
            part = rest[: room // rest.element_size()]
            bucket.append(part)
            rest, room = rest[part.numel() :], room - part.numel() * part.element_size()
            if room < tensor.element_size():
                yield bucket
                bucket, room = [], SLOT
    if bucket:
        yield bucket


def _lives(pid: int) -> bool:
    """Say whether a process of this machine is there and not merely waiting to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


_board: Board | None = None


def open_board(group: torch_dist.ProcessGroup | None = None) -> None:
    """Set up the board if all processes are on this machine's CPU; all must call it. Without it `gather` sends messages."""
    global _board
    size, this = torch_dist.get_world_size(group), torch_dist.get_rank(group)
    path = Path(f"/dev/shm/hamgan-{os.getpid()}-{time.time_ns()}")
    can = (
        1 < size <= MAX_PEERS
        and platform.machine() in ORDERED
        and path.parent.is_dir()
        and Path("/proc/self/stat").exists()
    )
    if can and this == 0:
        try:
            path.write_bytes(bytes(Board.num_bytes(size)))
        except OSError:
            can = False
    seen: list[tuple[bool, int, str]] = [(False, 0, "")] * size
    torch_dist.all_gather_object(seen, (can, os.getpid(), str(path)), group=group)
    path = Path(seen[0][2])
    board = None
    if path.exists() and all(one[0] and _lives(one[1]) for one in seen):
        board = Board(path, this, [pid for _, pid, _ in seen])
    opened = [False] * size
    torch_dist.all_gather_object(opened, board is not None, group=group)
    if this == 0:
        path.unlink(missing_ok=True)  # what is open stays
    _board = board if all(opened) else None


def close_board() -> None:
    """Leave the board."""
    global _board
    _board = None


def gather(x: Tensor, group: torch_dist.ProcessGroup | None = None) -> list[Tensor]:
    """Return every process's tensor, by rank.

    Args:
        x: Contiguous, of the same shape and dtype on all processes; is itself in the list.
        group: Of all processes; None: the default one.
    """
    if _board is not None and x.device.type == "cpu" and x.numel() * x.element_size() <= SLOT:
        return _board.gather(x)
    size, this = torch_dist.get_world_size(group), torch_dist.get_rank(group)
    parts = [x if rank == this else torch.empty_like(x) for rank in range(size)]
    if x.device.type != "cpu" or size > MAX_PEERS:
        parts[this] = torch.empty_like(x)
        torch_dist.all_gather(parts, x, group=group)
        return parts
    works = []
    for rank in range(size):
        if rank != this:
            works += [torch_dist.isend(x, rank, group), torch_dist.irecv(parts[rank], rank, group)]
    for work in works:
        if work is not None:
            work.wait()
    return parts


def add_up(tensors: Sequence[Tensor], group: torch_dist.ProcessGroup | None = None) -> None:
    """Add tensors up over the processes, in place; every process gets the same sums to the last bit.

    Args:
        tensors: Of one dtype; of the same shapes and strides on all processes, without holes.
        group: Of all processes; None: the default one.
    """
    if _board is not None and all(tensor.device.type == "cpu" for tensor in tensors):
        _board.add_up(tensors)
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch_dist.all_reduce(flat, group=group)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))

"""Who this process is among the processes of a run; works alone and on CPU.

Every call is safe without an initialised process group: a lone process is rank 0 of 1.
"""

import os
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TextIO, TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor

from hamgan.nn.exchange import add_up, close_board, gather, open_board

T = TypeVar("T")

MEETING_TIMEOUT = timedelta(seconds=25)
"""How long processes wait for one another at the start."""
COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""How long they wait within training: long, because the others wait while rank 0 builds the training file."""

_store: torch_dist.Store | None = None
_control: torch_dist.ProcessGroup | None = None


class LeftBehindError(Exception):
    """Another process has failed, and it is the one that says why."""


def init(device: torch.device) -> None:
    """Join the process group that torchrun describes in the environment; do nothing when run alone.

    Args:
        device: Where this process computes; decides between NCCL and gloo.

    Raises:
        OSError: If the processes do not find one another in time, or the port is in use.
        LeftBehindError: Likewise, on the processes that leave it to another one to say so.
    """
    global _store, _control
    if "RANK" not in os.environ or torch_dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL's collectives of objects use the current device
    _store, this, size = _meet()
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = torch_dist.PrefixStore("group", _store)
    torch_dist.init_process_group(backend, store=store, rank=this, world_size=size, timeout=COLLECTIVE_TIMEOUT)
    # Flags and paths travel between CPUs, so that asking for them never waits for a GPU.
    if backend == "nccl":
        group = torch_dist.new_group(backend="gloo")
        _control = group if isinstance(group, torch_dist.ProcessGroup) else None
    else:
        open_board()


def _meet() -> tuple[torch_dist.Store, int, int]:
    """Return (store, rank, world size) once every process is here."""
    address = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    this, size = os.environ["RANK"], os.environ.get("WORLD_SIZE", "?")
    alone = (
        f"{address}: rank {this} of {size} waited {MEETING_TIMEOUT.seconds} s for the other processes; "
        "start as many as WORLD_SIZE says"
    )
    if this != "0" and not _answers(time.monotonic() + MEETING_TIMEOUT.seconds):
        raise OSError(alone) if this == "1" else LeftBehindError
    try:
        store, this_rank, num = next(torch_dist.rendezvous("env://", timeout=MEETING_TIMEOUT))
    except ValueError as error:
        raise ValueError(f"the environment describes no process group: {error}") from None
    except RuntimeError as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error):
            raise OSError(f"{address}: the port is in use; set MASTER_PORT, or give torchrun --standalone") from None
        if this not in ("0", "1"):
            raise LeftBehindError from None
        raise OSError(alone) from None
    # torchrun keeps one store over all its attempts: without a name of its own a restarted group would find the addresses of
    # the processes that are gone, and wait for them.
    attempt = f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}-of-{num}"
    store = torch_dist.PrefixStore(attempt, store)
    present = [f"present/{rank}" for rank in range(num)]
    try:
        store.set(present[this_rank], "")
        store.wait(present, MEETING_TIMEOUT)
    except RuntimeError:
        if this_rank:
            raise LeftBehindError from None
        missing = [str(rank) for rank in range(num) if not store.check([present[rank]])]
        raise OSError(
            f"{address}: of {num} processes, rank {', '.join(missing)} did not come within {MEETING_TIMEOUT.seconds} s"
        ) from None
    return store, this_rank, num


def _answers(until: float) -> bool:
    """Wait until something listens at the address of rank 0; torch's own attempts print a stack each and take twice as long."""
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not host or not port.isdecimal():
        return True  # torch says what is missing
    while (left := until - time.monotonic()) > 0:
        try:
            socket.create_connection((host, int(port)), timeout=left).close()
            return True
        except (OSError, OverflowError):
            time.sleep(0.2)
    return False


def speaks_for_all() -> bool:
    """Say whether this process is the one to report an error: the first of all that asks; before they met, one a node."""
    if _store is None:
        return os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"
    try:
        return int(_store.add("reported", 1)) == 1
    except RuntimeError:  # the process that kept the store has left: it has spoken
        return False


def is_lost_connection(error: BaseException) -> bool:
    """Say whether an error means that another process has gone away."""
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        word in text for word in ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    )


def shutdown() -> None:
    """Leave the process group, if there is one."""
    global _store, _control
    _store = _control = None
    close_board()
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def rank() -> int:
    """Return this process's number among all, from 0."""
    return torch_dist.get_rank() if torch_dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return torch_dist.get_world_size() if torch_dist.is_initialized() else 1


def local_rank() -> int:
    """Return this process's number on its node, which is its GPU's number."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Say whether this is the process that logs and saves."""
    return rank() == 0


def print0(*values: object, file: TextIO | None = None) -> None:
    """Print on rank 0 only, flushed."""
    if is_main():
        print(*values, file=file or sys.stdout, flush=True)


def barrier() -> None:
    """Wait until every process is here."""
    if torch_dist.is_initialized():
        torch_dist.barrier()


def all_reduce_mean_coalesced(tensors: list[Tensor]) -> None:
    """Average gradients, dense and laid out alike on all processes, in place, in one message for each dtype."""
    if world_size() == 1:
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):  # in the same order everywhere
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        add_up(group)
        torch._foreach_div_(group, world_size())


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Add a tensor up over the processes, in place, and return it."""
    if world_size() > 1:
        torch_dist.all_reduce(tensor)
    return tensor


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Average a floating-point tensor over the processes, in place, and return it."""
    return all_reduce_sum(tensor).div_(world_size()) if world_size() > 1 else tensor


def broadcast_module(module: torch.nn.Module) -> None:
    """Give every process rank 0's weights and buffers."""
    if world_size() > 1:
        for tensor in module.state_dict().values():
            torch_dist.broadcast(tensor, 0)


def from_rank0(value: T) -> T:
    """Return rank 0's value (anything picklable, exchanged among our own processes only) on every process."""
    if world_size() == 1:
        return value
    box = [value]
    torch_dist.broadcast_object_list(box, 0, group=_control)
    return box[0]


def on_rank0(function: Callable[[], T]) -> T:
    """Call a function on rank 0 and return its value, as `from_rank0` does, on every process.

    Raises:
        Exception: Whatever the function raises, on rank 0.
        LeftBehindError: On the other processes, if it raised.
    """
    if world_size() == 1:
        return function()
    result: tuple[bool, T | None] = (False, None)
    try:
        if is_main():
            result = (True, function())
    finally:
        result = from_rank0(result)
    succeeded, value = result
    if not succeeded:
        raise LeftBehindError
    return value  # type: ignore[return-value]


def gather_objects(value: T) -> list[T]:
    """Return every process's value (anything picklable, exchanged among our own processes only), by rank."""
    if world_size() == 1:
        return [value]
    box: list[T | None] = [None] * world_size()
    torch_dist.all_gather_object(box, value)
    return [one for one in box if one is not None]


def any_rank(flag: bool) -> bool:
    """Say whether the flag is set on any process."""
    if world_size() == 1:
        return flag
    return any(bool(one.item()) for one in gather(torch.tensor([float(flag)]), _control))

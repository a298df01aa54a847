"""Who this process is among the processes of a run; works alone and on CPU.

Every call is safe without an initialised process group: a lone process is rank 0 of 1.
"""

import os
import sys
from datetime import timedelta
from typing import TextIO, TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor

T = TypeVar("T")


def init(device: torch.device) -> None:
    """Join the process group that torchrun describes in the environment; do nothing when run alone.

    Args:
        device: Where this process computes; decides between NCCL and gloo.
    """
    if "RANK" not in os.environ or torch_dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL's collectives of objects use the current device
    # Long, because the others wait while rank 0 builds the training file.
    torch_dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))


def shutdown() -> None:
    """Leave the process group, if there is one."""
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
    """Average tensors over the processes, in place, in one message for each dtype."""
    if world_size() == 1:
        return
    for dtype in {tensor.dtype for tensor in tensors}:
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.flatten() for tensor in group])
        torch_dist.all_reduce(flat)
        flat /= world_size()
        for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view_as(tensor))


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Add a tensor up over the processes, in place, and return it."""
    if world_size() > 1:
        torch_dist.all_reduce(tensor)
    return tensor


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
    torch_dist.broadcast_object_list(box, 0)
    return box[0]


def gather_objects(value: T) -> list[T]:
    """Return every process's value (anything picklable, exchanged among our own processes only), by rank."""
    if world_size() == 1:
        return [value]
    box: list[T | None] = [None] * world_size()
    torch_dist.all_gather_object(box, value)
    return [one for one in box if one is not None]


def any_rank(flag: bool, device: torch.device) -> bool:
    """Say whether the flag is set on any process."""
    if world_size() == 1:
        return flag
    number = torch.tensor(float(flag), device=device)
    torch_dist.all_reduce(number, torch_dist.ReduceOp.MAX)
    return bool(number.item())

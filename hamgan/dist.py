"""Who this process is among the processes of a run; works alone and on CPU.

Every call is safe without an initialised process group: a lone process is rank 0 of 1.
"""

import os
import sys
from typing import TextIO

import torch
import torch.distributed as torch_dist
from torch import Tensor


def init(device: torch.device) -> None:
    """Join the process group that torchrun describes in the environment; do nothing when run alone.

    Args:
        device: Where this process computes; decides between NCCL and gloo.
    """
    if "RANK" not in os.environ or torch_dist.is_initialized():
        return
    torch_dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


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


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Average a tensor over the processes, in place; return it."""
    if torch_dist.is_initialized():
        torch_dist.all_reduce(tensor)
        tensor /= world_size()
    return tensor

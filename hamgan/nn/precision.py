"""Which precision a layer computes in, and islands of float32 inside a network that runs in a lower one."""

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor


def float32_island(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast changes nothing on the device; its inputs are the caller's to convert."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype that autocast has convolutions and products on the tensor's device compute in; without it, its own."""
    device = tensor.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype

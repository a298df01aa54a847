"""Islands of float32 inside a network that runs in a lower precision."""

import contextlib
from contextlib import AbstractContextManager

import torch


def float32_island(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast changes nothing on the device; its inputs are the caller's to convert."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()

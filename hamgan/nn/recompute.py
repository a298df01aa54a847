"""Gradient checkpointing that repeats a block exactly: what a first pass advances, its repetition reads.

A block's intermediate maps are not kept for the backward pass but computed again there. Spectral norm's power iteration and
batch norm's running statistics advance in every training forward; a repetition has to take the vectors of the pass that it
repeats, and must not advance anything.

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor
from torch.utils.checkpoint import checkpoint

_state = threading.local()  # a backward pass may run in threads of its own, each repeating what it needs


def is_repeating() -> bool:
    """Say whether a forward pass is being computed for the second time."""
    return getattr(_state, "repeating", False)


@contextmanager
def _repeating() -> Iterator[None]:
    before, _state.repeating = is_repeating(), True
    try:
        yield
    finally:
        _state.repeating = before


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return contextlib.nullcontext(), _repeating()


def recomputed(block: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return block(*inputs); of what lies between, nothing is kept for the backward pass.

    Args:
        block: Between its forward and its backward pass it must not be called again, nor its weights changed.
        inputs: Kept.
    """
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=_contexts)

"""Which device a run computes on, and in which precision."""

import contextlib
import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Literal

import torch

from hamgan import dist

Compile = Literal[False, True, "reduce-overhead", "max-autotune"]
"""Whether networks are compiled, and in which of torch.compile's modes; true is its default."""

Autocast = Callable[[], AbstractContextManager[object]]
"""Opens the precision context that networks run in."""


def resolve_device(name: str) -> torch.device:
    """Return the device that a configuration names; `auto` is this process's GPU if there is one, else the CPU.

    Raises:
        ValueError: If torch knows no such device or this machine has none.
    """
    if name == "auto":
        return torch.device("cuda", dist.local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", dist.local_rank())
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is '{name}'; this machine cannot use it ({str(error).splitlines()[0]})") from None
    return device


def prepare(device: torch.device) -> None:
    """Set what torch keeps for the whole process: on a GPU, TF32 and measured algorithms for convolutions.

    Matrix products keep full float32: the ham's updates and the augmentation's shifts rely on it.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


def check_compile(mode: Compile, device: torch.device) -> None:
    """Refuse a way of compilation that the device does not have.

    Raises:
        ValueError: If CUDA graphs are wanted of anything but a GPU.
    """
    if mode == "reduce-overhead" and device.type != "cuda":
        raise ValueError(
            f"compile is 'reduce-overhead' on the device {device.type}; it records CUDA graphs, which only a GPU has: set it "
            "to true"
        )


def uses_cuda_graphs(mode: Compile, device: torch.device) -> bool:
    """Say whether networks compiled so are replayed from CUDA graphs, whose outputs the next replay writes over."""
    return device.type == "cuda" and mode in ("reduce-overhead", "max-autotune")


def computes_bf16(device: torch.device) -> bool:
    """Say whether the device has bfloat16 arithmetic, not only its emulation."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def resolve_autocast(precision: Literal["fp32", "bf16", "auto"], device: torch.device) -> tuple[str, Autocast]:
    """Return the precision that a configuration comes to on a device, and the context that networks run in."""
    if precision == "auto":
        precision = "bf16" if computes_bf16(device) else "fp32"

    def autocast() -> AbstractContextManager[object]:
        if precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)

    return precision, autocast


def release_memory(device: torch.device) -> None:
    """Give free memory back to the system where maps are on the CPU and the C library is GNU's; elsewhere do nothing.

    Its heap otherwise grows with every new size of a map, as what is free lies in pieces between what is not.
    """
    if device.type == "cpu" and (trim := _c_function("malloc_trim")) is not None:
        trim(0)


def keep_memory(device: torch.device) -> None:
    """Have this process keep memory that is freed, for steps that ask for the same again: the system clears what it gives.

    Of a CPU with the GNU C library alone; `release_memory` gives it back.
    """
    if device.type == "cpu" and (mallopt := _c_function("mallopt")) is not None:
        mallopt(_MALLOC_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_MALLOC_MMAP_MAX, 0)


KEPT_BYTES = (1 << 31) - 1
"""How many bytes at the heap's end may be free: the most that the setting takes."""
_MALLOC_TRIM_THRESHOLD, _MALLOC_MMAP_MAX = -1, -4
"""Numbers of the settings in malloc.h. Of the second, how many blocks may be taken from the system one by one, 0 says: none."""


@cache
def _c_function(name: str) -> Callable[..., int] | None:
    """Return a function of the C library; None: it is another one than GNU's."""
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # AttributeError elsewhere
        return getattr(library, name)
    except (OSError, AttributeError, TypeError):
        return None

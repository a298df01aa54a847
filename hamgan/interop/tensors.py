"""What the readers of foreign weights share: shapes with good errors, widths, and a strict assignment."""

from collections.abc import Mapping, Sequence
from math import gcd
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

N = TypeVar("N", bound=nn.Module)


def read_shape(state: Mapping[str, Tensor], name: str, path: str | Path) -> tuple[int, ...]:
    """Return a tensor's shape.

    Raises:
        ValueError: If the file has no such tensor.
    """
    if name not in state:
        raise ValueError(f"{path}: tensor '{name}' is missing")
    return tuple(state[name].shape)


def channel_unit(widths: Sequence[int], published: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """Split widths into (unit, multipliers); the multipliers are empty where they are the published plan's."""
    unit = widths[-1] // published[-1]
    if unit and [unit * multiplier for multiplier in published] == list(widths):
        return unit, ()
    unit = gcd(*widths)
    return unit, tuple(width // unit for width in widths)


def assign(network: N, tensors: Mapping[str, Tensor], path: str | Path) -> N:
    """Copy tensors into a network, all of them and nothing else; the stored bases of a ham may stay as they are.

    Returns:
        The network in evaluation mode.

    Raises:
        ValueError: If a tensor is missing, unknown or of another shape.
    """
    expected = network.state_dict()
    optional = {name for name in expected if name.endswith(("_ham.bases", "spectral_norm.u"))}
    for name in expected.keys() - optional - tensors.keys():
        raise ValueError(f"{path}: nothing for '{name}' of the network")
    for name, tensor in tensors.items():
        if name not in expected:
            raise ValueError(f"{path}: no place in the network for '{name}', {tuple(tensor.shape)}")
        if expected[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: '{name}' is {tuple(tensor.shape)}; the network needs {tuple(expected[name].shape)}"
            )
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
    return network.eval()

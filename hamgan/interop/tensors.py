"""What the readers of foreign weights share: shapes with good errors, widths, and a strict assignment."""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from math import gcd
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from torch import Tensor

from hamgan.models.discriminator import Discriminator
from hamgan.models.generator import Generator

N = TypeVar("N", Generator, Discriminator)
P = ParamSpec("P")


def naming_the_file(load: Callable[Concatenate[str | Path, P], N]) -> Callable[Concatenate[str | Path, P], N]:
    """Turn whatever a loader meets in a file with odd names or shapes into a ValueError that names the file."""

    @wraps(load)
    def wrapped(path: str | Path, *args: P.args, **kwargs: P.kwargs) -> N:
        try:
            return load(path, *args, **kwargs)
        except (KeyError, IndexError, RuntimeError) as error:
            raise ValueError(f"{path}: unexpected names or shapes of tensors ({error!r})") from None
        except ValueError as error:
            raise (error if str(path) in str(error) else ValueError(f"{path}: {error}")) from None

    return wrapped


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
    optional = {name for name in expected if name.endswith("_ham.bases")}
    if network.config.spectral_norm.mode == "none":
        optional |= {name for name in expected if name.endswith("spectral_norm.u")}
    for name in expected.keys() - optional - tensors.keys():
        raise ValueError(f"{path}: nothing for '{name}' of the network")
    for name, tensor in tensors.items():
        if name not in expected:
            raise ValueError(f"{path}: no place in the network for '{name}', {tuple(tensor.shape)}")
        if expected[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: '{name}' is {tuple(tensor.shape)}; the network needs {tuple(expected[name].shape)}"
            )
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: '{name}' holds values that are not finite")
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
    return network.eval()

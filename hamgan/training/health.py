"""What tells a healthy run from a collapsing one: diversity of samples, spectral norms, the ham's fit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hamgan.nn.hamburger import Hamburger
from hamgan.nn.spectral_norm import spectral_sigmas


def class_diversity(images: Tensor, labels: Tensor) -> float:
    """Return the mean over classes of the mean pairwise pixel distance of their images.

    Args:
        images: uint8 (N, 3, H, W).
        labels: Classes, (N,); classes with fewer than two images do not count.

    Returns:
        Root mean square difference of two images of a class, in grey levels 0..255; 0 if no class has two images.
    """
    distances = []
    for label in labels.unique():
        members = images[labels == label].flatten(1).float()
        if len(members) > 1:
            distances.append((torch.pdist(members) / members.shape[1] ** 0.5).mean())
    return float(torch.stack(distances).mean()) if distances else 0.0


def largest_sigmas(network: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return the three largest estimated singular values of a network's raw weights, by `<prefix>/sigma/<layer>`."""
    sigmas = spectral_sigmas(network)
    largest = sorted(sigmas, key=lambda name: -float(sigmas[name]))[:3]
    return {f"{prefix}/sigma/{name}": sigmas[name] for name in largest}


@contextmanager
def _inputs_of(hams: list[tuple[str, Hamburger]]) -> Iterator[dict[str, Tensor]]:
    """Catch the map that each Hamburger is given."""
    caught: dict[str, Tensor] = {}

    def catcher(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def catch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            caught[name] = inputs[0].detach()

        return catch

    handles = [ham.register_forward_pre_hook(catcher(name)) for name, ham in hams]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def ham_statistics(network: nn.Module, run: Callable[[], object], prefix: str) -> dict[str, Tensor]:
    """Measure every Hamburger of a network while `run` passes something through it.

    Args:
        network: Generator or discriminator, in evaluation mode.
        run: Calls the network once.
        prefix: Of the names.

    Returns:
        `<prefix>/<block>/gate` and `<prefix>/<block>/reconstruction_error` (relative, Frobenius), scalars.
    """
    hams = [(name, module) for name, module in network.named_modules() if isinstance(module, Hamburger)]
    if not hams:
        return {}
    with _inputs_of(hams) as caught:
        run()
    statistics = {}
    for name, ham in hams:
        statistics[f"{prefix}/{name}/gate"] = ham.gate.detach()
        statistics[f"{prefix}/{name}/reconstruction_error"] = ham.reconstruction_error(caught[name])
    return statistics

"""What tells a healthy run from a collapsing one: diversity of samples, memorising, singular values, the ham's use.

All of it is measured on the averaged generator and on D in evaluation mode, and changes neither.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamgan.nn.decomposition import MatrixDecomposition
from hamgan.nn.hamburger import Hamburger
from hamgan.nn.spectral_norm import SNConv2d, SNEmbedding, SNLinear

BATCH = 64
"""Images a forward pass of D."""
POWER_ITERATIONS = 4
DEAD_SHARE = 0.01
"""A base is dead if it adds less than this times what a base adds on average."""


def class_diversity(vectors: Tensor, labels: Tensor) -> float:
    """Return the mean over classes of the mean pairwise distance of their members.

    Args:
        vectors: (N, ...), any shape beyond the first axis; images as uint8 or features.
        labels: Classes, (N,); classes with fewer than two members do not count.

    Returns:
        Root mean square difference of two members of a class, in the vectors' unit; 0 if no class has two.
    """
    distances = []
    for label in labels.unique():
        members = vectors[labels == label].flatten(1).float()
        if len(members) > 1:
            distances.append((torch.pdist(members) / members.shape[1] ** 0.5).mean())
    return float(torch.stack(distances).mean()) if distances else 0.0


@torch.no_grad()
def judge_images(D: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return D's features (N, C) and logits (N,) of uint8 images (N, 3, H, W), on the CPU."""
    features, logits = [], []
    for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        h = D.features(x.to(device).float() / 127.5 - 1)  # type: ignore[operator]
        features.append(h.cpu())
        logits.append(D.judge(h, y.to(device)).float().flatten().cpu())  # type: ignore[operator]
    return torch.cat(features), torch.cat(logits)


def compare(
    D: nn.Module,
    device: torch.device,
    fake: tuple[Tensor, Tensor],
    real: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor] | None,
) -> dict[str, float]:
    """Compare generated, shown and held-out images, each (uint8 (N, 3, H, W), classes (N,)), in pixels and by D.

    Returns:
        `diversity_ratio` and `feature_diversity_ratio`: the diversity of the generated over that of the shown images;
        `d_feature_spread`: the diversity of both in D's features, over the features' root mean square: 0 where D is dead and
        answers the same to every image;
        `d_accuracy_shown`, `d_accuracy_held_out`: shares that D takes for real, and `d_gap_held_out`, the first less the
        second: near 0 unless D memorises.
    """
    row = {"diversity_ratio": class_diversity(*fake) / max(class_diversity(*real), 1e-9)}
    fake_features, _ = judge_images(D, *fake, device)
    real_features, real_logits = judge_images(D, *real, device)
    row["feature_diversity_ratio"] = class_diversity(fake_features, fake[1]) / max(
        class_diversity(real_features, real[1]), 1e-9
    )
    features = torch.cat((real_features, fake_features)).float()
    spread = class_diversity(features, torch.cat((real[1], fake[1])))
    row["d_feature_spread"] = spread / max(float(features.square().mean().sqrt()), 1e-9)
    row["d_accuracy_shown"] = float((real_logits > 0).float().mean())
    if held_out is not None:
        _, logits = judge_images(D, *held_out, device)
        row["d_accuracy_held_out"] = float((logits > 0).float().mean())
        row["d_gap_held_out"] = row["d_accuracy_shown"] - row["d_accuracy_held_out"]
    return row


@torch.no_grad()
def largest_sigmas(network: nn.Module, prefix: str) -> dict[str, float]:
    """Estimate the largest singular values of a network's raw weights, normalised or not.

    Returns:
        `<prefix>/sigma_max`, and the three largest by `<prefix>/sigma/<layer>`.
    """
    layers = {n: m for n, m in network.named_modules() if isinstance(m, SNConv2d | SNLinear | SNEmbedding)}
    sigmas = torch.stack([_sigma(layer) for layer in layers.values()]).tolist()
    largest = sorted(zip(sigmas, layers, strict=True), reverse=True)[:3]
    return {f"{prefix}/sigma_max": largest[0][0]} | {f"{prefix}/sigma/{name}": sigma for sigma, name in largest}


def _sigma(layer: SNConv2d | SNLinear | SNEmbedding) -> Tensor:
    matrix, u = layer.weight.flatten(1), layer.spectral_norm.u
    if layer.spectral_norm.config.side == "input":
        matrix = matrix.t()
    for _ in range(POWER_ITERATIONS):
        v = F.normalize(torch.mv(matrix.t(), u), dim=0)
        u = F.normalize(torch.mv(matrix, v), dim=0)
    return torch.mv(matrix.t(), u).norm()


@torch.no_grad()
def count_nonfinite(*networks: nn.Module) -> float:
    """Count the numbers of weights and buffers that are not finite."""
    tensors = [t for network in networks for t in network.state_dict().values() if t.is_floating_point()]
    sums = torch.stack(
        [t.sum().double() for t in tensors]
    )  # not finite if one of its numbers is not, or if it overflows
    if sums.isfinite().all():
        return 0.0
    return float(sum(int((~t.isfinite()).sum()) for t in tensors))


@contextmanager
def _inputs_of(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Catch the first argument that each module is given."""
    caught: dict[str, Tensor] = {}

    def catcher(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def catch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            caught[name] = inputs[0].detach()

        return catch

    handles = [module.register_forward_pre_hook(catcher(name)) for name, module in modules.items()]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def ham_statistics(network: nn.Module, run: Callable[[], object], prefix: str) -> dict[str, float]:
    """Measure every Hamburger of a network while `run` passes something through it.

    Args:
        network: Generator or discriminator, in evaluation mode.
        run: Calls the network once.
        prefix: Of the names.

    Returns:
        For every block `<prefix>/<block>/gate`, and for its ham or hams `/reconstruction_error` (relative, Frobenius),
        `/dead_bases` (share of bases that add next to nothing) and `/effective_rank` (of the reconstruction: the exponential
        of the entropy of its singular values, at most R).
    """
    burgers = {name: module for name, module in network.named_modules() if isinstance(module, Hamburger)}
    hams: dict[str, nn.Module] = {
        f"{name}/{inner}" if burger.spatial_ham is not None and burger.channel_ham is not None else name: ham
        for name, burger in burgers.items()
        for inner, ham in burger.named_children()
        if isinstance(ham, MatrixDecomposition)
    }
    if not hams:
        return {}
    with _inputs_of(hams) as caught:
        run()
    row = {f"{prefix}/{name}/gate": float(burger.gate) for name, burger in burgers.items()}
    for name, ham in hams.items():
        assert isinstance(ham, MatrixDecomposition)
        row |= {f"{prefix}/{name}/{key}": value for key, value in decomposition_statistics(ham, caught[name]).items()}
    return row


def decomposition_statistics(ham: MatrixDecomposition, x: Tensor) -> dict[str, float]:
    """Return reconstruction_error, dead_bases and effective_rank of columns x (B, D, N), means over the batch."""
    x = x.float()
    bases, coef = ham.decompose(x)
    error = (x - torch.bmm(bases, coef.transpose(1, 2))).norm() / x.norm().clamp_min(1e-12)
    use = bases.norm(dim=1) * coef.norm(dim=1)
    dead = (use < DEAD_SHARE * use.mean(1, keepdim=True)).float().mean()
    # The singular values of bases @ coef^T from two small triangles.
    triangles = torch.linalg.qr(bases)[1] @ torch.linalg.qr(coef)[1].transpose(1, 2)
    share = F.normalize(torch.linalg.svdvals(triangles), p=1, dim=1)
    rank = torch.special.entr(share).sum(1).exp().mean()
    return {"reconstruction_error": float(error), "dead_bases": float(dead), "effective_rank": float(rank)}

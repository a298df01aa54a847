"""What the ham sees: its codes as soft segments of an image, and how its bases share the image over the K steps."""

import colorsys
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamgan.nn.decomposition import MatrixDecomposition
from hamgan.nn.hamburger import Hamburger
from hamgan.sampling.draw import DrawsImages, chunk_size, to_uint8


@dataclass(frozen=True, kw_only=True)
class HamCodes:
    """One ham's view of N images, with R segments: its bases, those of all sections one after the other."""

    name: str
    """The Hamburger's name in the network, and which of its hams."""
    segments: Tensor
    """Each segment's share of each pixel of the ham's map, (N, R, H, W), float32, adding up to 1 over R."""
    usage: Tensor
    """Each segment's share of an image after k = 0..K steps, (K + 1, N, R), adding up to 1 over R."""
    error: Tensor
    """|X - bases coef^T| / |X| after k = 0..K steps, (K + 1, N)."""


@contextmanager
def _maps_given_to(hams: dict[str, Hamburger]) -> Iterator[dict[str, Tensor]]:
    """Catch the map that each Hamburger is given."""
    caught: dict[str, Tensor] = {}

    def catcher(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def catch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            caught[name] = inputs[0]

        return catch

    handles = [ham.register_forward_pre_hook(catcher(name)) for name, ham in hams.items()]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def hamburgers(G: nn.Module) -> dict[str, Hamburger]:
    """Return a generator's Hamburgers by name.

    Raises:
        ValueError: If it has none.
    """
    found = {name: module for name, module in G.named_modules() if isinstance(module, Hamburger)}
    if not found:
        raise ValueError("this generator has no Hamburger (its context is attention or none), hence no codes to show")
    return found


@torch.inference_mode()
def draw_with_codes(G: DrawsImages, z: Tensor, y: Tensor) -> tuple[Tensor, list[HamCodes]]:
    """Draw images together with what the hams saw in them.

    Args:
        G: In evaluation mode, a network.
        z: Latents, (N, z_dim), N at least 1.
        y: Classes, int64 (N,); or weights, (N, num_classes).

    Returns:
        The images that `draw_latents` gives, bit for bit, uint8 (N, 3, resolution, resolution); and each ham's codes, on
        the CPU, in the network's order.

    Raises:
        ValueError: If the generator has no Hamburger.
    """
    assert isinstance(G, nn.Module)
    hams = hamburgers(G)
    device = next(G.parameters()).device
    images: list[Tensor] = []
    pieces: dict[str, list[HamCodes]] = {}
    chunk = chunk_size(device)
    for start in range(0, len(z), chunk):
        count = min(chunk, len(z) - start)
        index = start + torch.arange(chunk).clamp_max(count - 1)
        with _maps_given_to(hams) as caught:
            images.append(to_uint8(G(z[index].to(device), y[index].to(device))[:count]).cpu())
        for name, ham in hams.items():
            for codes in _codes_of(name, ham, caught[name][:count]):
                pieces.setdefault(codes.name, []).append(codes)
    joined = [
        HamCodes(
            name=name,
            segments=torch.cat([codes.segments for codes in piece]),
            usage=torch.cat([codes.usage for codes in piece], 1),
            error=torch.cat([codes.error for codes in piece], 1),
        )
        for name, piece in pieces.items()
    ]
    return torch.cat(images), joined


def _codes_of(name: str, ham: Hamburger, x: Tensor) -> Iterator[HamCodes]:
    """Decompose the map (n, C, H, W) that a Hamburger was given, once for each number of steps."""
    h = ham.columns_of(x)
    both = ham.spatial_ham is not None and ham.channel_ham is not None
    halves = h.chunk(2, 1) if both else (h, h)
    for kind, part, found in (("spatial", halves[0], ham.spatial_ham), ("channel", halves[1], ham.channel_ham)):
        if found is not None:
            yield _codes(f"{name} ({kind})" if both else name, found, kind, part)


def _codes(name: str, ham: MatrixDecomposition, kind: str, h: Tensor) -> HamCodes:
    count, height, width = len(h), *h.shape[2:]
    columns = h.flatten(2).unflatten(1, (ham.num_sections, -1)).flatten(0, 1).float()
    if kind == "channel":
        columns = columns.transpose(1, 2)
    probe = copy.copy(ham)  # shares the bases; only its number of steps is its own
    usage, errors = [], []
    for steps in range(ham.eval_steps + 1):
        probe.eval_steps = steps
        bases, coef = probe.decompose(columns)
        shares = _shares(bases, coef, kind).unflatten(0, (count, -1)).flatten(1, 2)
        residual = (columns - bases @ coef.transpose(1, 2)).unflatten(0, (count, -1)).flatten(1).norm(dim=1)
        errors.append(residual / columns.unflatten(0, (count, -1)).flatten(1).norm(dim=1).clamp_min(1e-12))
        usage.append(shares.sum(2) / shares.sum((1, 2))[:, None].clamp_min(1e-12))
    # Of the last number of steps, the one that the network takes.
    segments = shares / shares.sum(1, keepdim=True).clamp_min(1e-12)
    return HamCodes(
        name=name,
        segments=segments.unflatten(2, (height, width)).cpu(),
        usage=torch.stack(usage).cpu(),
        error=torch.stack(errors).cpu(),
    )


def _shares(bases: Tensor, coef: Tensor, kind: str) -> Tensor:
    """Return how much of each pixel each base makes up, (B, R, N), non-negative.

    The split of a product between base and code is arbitrary, so a code is weighed by its base's length. Where columns are
    channels, the bases are the pictures and the codes weigh them. Signed codes (CD) count by magnitude.
    """
    pixels, weights = (coef, bases) if kind == "spatial" else (bases, coef)
    return (pixels.abs() * weights.norm(dim=1)[:, None]).transpose(1, 2)


def segment_colors(num_segments: int) -> Tensor:
    """Return colours that neighbours in the list tell apart, (R, 3), in 0..1.

    Hues go round by the golden angle; lightness alternates, since sixteen hues alone would not be told apart.
    """
    hues = [(index * 0.618034 + 0.02) % 1.0 for index in range(num_segments)]
    tones = [((0.55, 0.85), (0.42, 0.70), (0.66, 0.75))[index % 3] for index in range(num_segments)]
    return torch.tensor([colorsys.hls_to_rgb(hue, *tone) for hue, tone in zip(hues, tones, strict=True)])


def order_of_use(codes: HamCodes) -> Tensor:
    """Return the segments' numbers, the most used over all images first, int64 (R,)."""
    return codes.usage[-1].mean(0).argsort(descending=True, stable=True)


def overlay(
    images: Tensor,
    codes: HamCodes,
    colors: Tensor,
    *,
    zoom: int = 1,
    strength: float = 0.75,
    sharpness: float = 4.0,
) -> Tensor:
    """Tint images by their segments, each pixel with the mixture of its segments' colours.

    Args:
        images: uint8 (N, 3, H, W).
        codes: Of these images.
        colors: Of the segments, (R, 3), in 0..1.
        zoom: Whole-number enlargement; the segments stay soft.
        strength: Weight of the colour, 0..1; the rest is the image's lightness, so that shapes stay readable.
        sharpness: Power that shares are raised to before they are mixed; many bases of equal share would mix to grey.

    Returns:
        uint8 (N, 3, zoom * H, zoom * W).
    """
    side = (images.shape[2] * zoom, images.shape[3] * zoom)
    shares = codes.segments / codes.segments.amax(1, keepdim=True).clamp_min(1e-12)  # else small powers underflow
    shares = shares.pow(sharpness)
    mixture = torch.einsum("nrhw,rc->nchw", shares / shares.sum(1, keepdim=True), colors)
    mixture = F.interpolate(mixture, size=side, mode="bicubic", align_corners=False).clamp(0, 1)
    picture = images.float().div(255).repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    lightness = (picture * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    tinted = mixture * (0.35 + 0.65 * lightness)
    return (((1 - strength) * lightness + strength * tinted) * 255).round().clamp(0, 255).to(torch.uint8)

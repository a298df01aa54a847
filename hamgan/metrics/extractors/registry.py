"""Build an extractor by name, with its weights found, checked and loaded."""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hamgan.metrics.extractors import vit
from hamgan.metrics.extractors.base import Extractor
from hamgan.metrics.extractors.weights import check_weights, load_into, read_state_dict
from hamgan.nn import efficientnet_lite

# Extractor to its protocols, the default first.
EXTRACTORS: dict[str, tuple[str, ...]] = {
    "efficientnet_lite0": ("bicubic224",),
    "inception": ("tf1", "pytorch-fid", "clean"),
    "dinov2": ("bicubic224",),
    "clip": ("bicubic",),
}

_EFFICIENTNET_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def load_extractor(
    name: str,
    *,
    protocol: str | None = None,
    weights: str | Path | None = None,
    verify: bool = True,
    device: torch.device | str = "cpu",
) -> Extractor:
    """Build a feature network.

    Args:
        name: A key of EXTRACTORS.
        protocol: Input pipeline; None takes the extractor's default.
        weights: Local weight file. None takes the installed package's (efficientnet_lite0), or
            $HAMGAN_INCEPTION_WEIGHTS, a cache or a download (inception); the others need one.
        verify: Refuse weights that are not the published ones, where their digest is known (inception,
            efficientnet_lite0). The digest is recorded with every number either way.
        device: Where to run.

    Returns:
        The extractor, ready to call.

    Raises:
        ValueError: If name or protocol are unknown, or the weights missing, damaged or another network's.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"extractor = {name!r}: unknown; allowed: {', '.join(EXTRACTORS)}")
    protocol = protocol or EXTRACTORS[name][0]
    if protocol not in EXTRACTORS[name]:
        allowed = ", ".join(EXTRACTORS[name])
        raise ValueError(f"protocol = {protocol!r}: unknown to {name}; allowed: {allowed}")
    if name == "efficientnet_lite0":
        extractor = _efficientnet_lite0(protocol, weights, verify)
    elif name == "inception":
        extractor = _inception(protocol, weights, verify)
    elif weights is None:
        raise ValueError(f"extractor {name}: needs a local weight file (the published checkpoint)")
    elif name == "dinov2":
        extractor = _dinov2(protocol, weights)
    else:
        extractor = _clip(protocol, weights)
    return extractor.to(device)


def _efficientnet_lite0(protocol: str, weights: str | Path | None, verify: bool) -> Extractor:
    path = weights or efficientnet_lite.weights_path()
    digest = check_weights(path, _EFFICIENTNET_LITE0_SHA256 if verify else None)
    with torch.device("meta"):
        network = efficientnet_lite.EfficientNetLite0()
    load_into(network, read_state_dict(path), path)
    return Extractor(
        name="efficientnet_lite0",
        protocol=protocol,
        dim=network.dim,
        num_classes=network.num_classes,
        weights_sha256=digest,
        preprocess=_as_classified,
        network=network.to(memory_format=torch.channels_last),
    )


def _as_classified(images: Tensor) -> Tensor:
    """Resize to 224 x 224 and scale as the network was trained.

    Args:
        images: uint8, (B, 3, H, W).

    Returns:
        (B, 3, 224, 224) float32, (pixel - 127) / 128 after antialiased bicubic (a = -0.5, as Pillow's).
    """
    x = images.float()
    if x.shape[2:] != (224, 224):
        x = F.interpolate(x, size=(224, 224), mode="bicubic", align_corners=False, antialias=True)
        x = x.clamp(0, 255)
    return (x - efficientnet_lite.MEAN) / efficientnet_lite.STD


def _inception(protocol: str, weights: str | Path | None, verify: bool) -> Extractor:
    from hamgan.metrics.extractors import inception  # brings torchvision, which the others do without

    path = weights or inception.weights_path()
    digest = check_weights(path, inception.WEIGHTS_SHA256 if verify else None)
    network = inception.network()
    load_into(network, read_state_dict(path), path)
    return Extractor(
        name="inception",
        protocol=protocol,
        dim=inception.InceptionFID.dim,
        num_classes=inception.InceptionFID.num_classes,
        weights_sha256=digest,
        preprocess=inception.PREPROCESS[protocol],
        network=network,
    )


def _dinov2(protocol: str, weights: str | Path) -> Extractor:
    digest = check_weights(weights, None)
    state_dict = read_state_dict(weights)
    _check_shapes(state_dict, {"patch_embed.proj.weight": 4, "pos_embed": 3}, weights, "a DINOv2 backbone")
    if "register_tokens" in state_dict:
        _check_shapes(state_dict, {"register_tokens": 3}, weights, "a DINOv2 backbone")
    with torch.device("meta"):
        network = vit.DinoV2.from_shapes(state_dict)
    load_into(network, state_dict, weights)
    return Extractor(
        name=network.variant,
        protocol=protocol,
        dim=network.dim,
        num_classes=None,
        weights_sha256=digest,
        preprocess=partial(vit.preprocess, mean=vit.IMAGENET_MEAN, std=vit.IMAGENET_STD),
        network=network,
    )


def _clip(protocol: str, weights: str | Path) -> Extractor:
    digest = check_weights(weights, None)
    state_dict = vit.visual_part(read_state_dict(weights))
    shapes = {"proj": 2, "conv1.weight": 4, "positional_embedding": 2}
    _check_shapes(state_dict, shapes, weights, "a CLIP image transformer", "visual.")
    with torch.device("meta"):
        network = vit.ClipVisual.from_shapes(state_dict)
    load_into(network, state_dict, weights)
    side = network.grid * network.patch
    return Extractor(
        name=network.variant,
        protocol=f"{protocol}{side}",
        dim=network.dim,
        num_classes=None,
        weights_sha256=digest,
        preprocess=partial(vit.preprocess, mean=vit.CLIP_MEAN, std=vit.CLIP_STD, side=side),
        network=network,
    )


def _check_shapes(
    state_dict: dict[str, Tensor], dims: dict[str, int], path: str | Path, what: str, prefix: str = ""
) -> None:
    # The network is built after these: whatever they say must at least be a network.
    for name, count in dims.items():
        if name not in state_dict:
            raise ValueError(f"{path}: not {what}: no {prefix + name!r}")
        shape = tuple(state_dict[name].shape)
        if len(shape) != count or 0 in shape:
            raise ValueError(f"{path}: not {what}: {prefix}{name} has shape {shape}, expected {count} dimensions")

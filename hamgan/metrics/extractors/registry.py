"""Build an extractor by name, with its weights found, checked and loaded."""

from pathlib import Path

import torch

from hamgan.metrics.extractors import efficientnet_lite
from hamgan.metrics.extractors.base import Extractor
from hamgan.metrics.extractors.weights import check_weights, load_into, read_state_dict

# Extractor to its protocols, the default first.
EXTRACTORS: dict[str, tuple[str, ...]] = {
    "efficientnet_lite0": ("bicubic224",),
}

_EFFICIENTNET_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def load_extractor(
    name: str,
    *,
    protocol: str | None = None,
    weights: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> Extractor:
    """Build a feature network.

    Args:
        name: A key of EXTRACTORS.
        protocol: Input pipeline; None takes the extractor's default.
        weights: Local weight file; None takes the extractor's own source.
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
    return _efficientnet_lite0(protocol, weights).to(device)


def _efficientnet_lite0(protocol: str, weights: str | Path | None) -> Extractor:
    path = weights or efficientnet_lite.weights_path()
    # A file of the user's own may be fine-tuned; its recorded digest tells it from the original.
    digest = check_weights(path, None if weights else _EFFICIENTNET_LITE0_SHA256)
    with torch.device("meta"):
        network = efficientnet_lite.EfficientNetLite0()
    load_into(network, read_state_dict(path), path)
    return Extractor(
        name="efficientnet_lite0",
        protocol=protocol,
        dim=network.dim,
        num_classes=network.num_classes,
        weights_sha256=digest,
        preprocess=efficientnet_lite.preprocess,
        network=network.to(memory_format=torch.channels_last),
        cpu_batch=4,
    )

"""What does extraction cost beyond the network's forward passes? (checks, resize, copies, chunk files)

Run: python benchmarks/metrics_extraction.py [--images 256] [--inception-images 16]
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from hamgan.metrics import ArrayImages, Extractor, InceptionScore, load_extractor
from hamgan.metrics.collect import collect
from hamgan.metrics.extractors.inception import InceptionFID, preprocess_tf1


def inception() -> Extractor:
    """The network with random weights: speed does not depend on them."""
    network = InceptionFID()
    return Extractor(
        name="inception",
        protocol="tf1",
        dim=network.dim,
        num_classes=network.num_classes,
        weights_sha256="random",
        preprocess=preprocess_tf1,
        network=network,
    )


def compare(extractor: Extractor, count: int, side: int, repeats: int = 3) -> None:
    """Print both times and their ratio, each the best of alternating repeats."""
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    source = ArrayImages(images)
    ready = [extractor.preprocess(part) for part in images.split(extractor.cpu_batch)]
    bare, whole = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        with torch.no_grad():
            for part in ready:
                extractor.network(part)
        bare.append(time.perf_counter() - start)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            collect(source, extractor, score=InceptionScore(count), work_dir=Path(folder), progress=False)
            whole.append(time.perf_counter() - start)
    ratio = min(whole) / min(bare)
    print(
        f"{extractor.name:20} {count:5} images of {side:3} px: network {count / min(bare):7.1f} img/s, "
        f"whole pass {count / min(whole):7.1f} img/s, ratio {ratio:.3f}"
    )


def main() -> None:
    """Compare both built-in extractors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--inception-images", type=int, default=16)
    options = parser.parse_args()
    compare(load_extractor("efficientnet_lite0"), options.images, 32)
    compare(inception(), options.inception_images, 128)


if __name__ == "__main__":
    main()

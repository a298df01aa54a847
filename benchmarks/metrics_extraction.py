"""What does extraction cost beyond the network's forward passes? (reading, decoding, checks, resize, copies, chunk files)

The bare network sees ready tensors, at whichever way of running it is fastest here: batches of several sizes, each on all
threads, or several at once on one thread each. Ours begins with PNG files and ends with stored features. Both take turns,
since the same pass may take half as long again a minute later; medians count.

Run: python benchmarks/metrics_extraction.py [--threads 2] [--rounds 15]
"""

import argparse
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from measure import seconds
from PIL import Image

from hamgan.metrics import Extractor, FolderImages, InceptionScore, load_extractor
from hamgan.metrics.collect import collect
from hamgan.metrics.extractors.inception import InceptionFID, preprocess_tf1

QUICK = ["--rounds", "2", "--inception-images", "8"]


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


def bare_passes(extractor: Extractor, images: torch.Tensor, threads: int) -> dict[str, Callable[[], object]]:
    """Name every way of running the bare network over all images."""

    def forward(x: torch.Tensor) -> object:
        with torch.no_grad():  # torch's modes are thread-local
            return extractor.network(x)

    def in_turn(parts: list[torch.Tensor]) -> Callable[[], object]:
        return lambda: [forward(part) for part in parts]

    def at_once(parts: list[torch.Tensor], pool: ThreadPoolExecutor) -> Callable[[], object]:
        def run() -> None:
            torch.set_num_threads(1)
            list(pool.map(forward, parts))
            torch.set_num_threads(threads)

        return run

    ways: dict[str, Callable[[], object]] = {}
    pool = ThreadPoolExecutor(threads)
    for size in (2, 4, 8, 16, 32):
        ready = [extractor.preprocess(part) for part in images.split(size)]
        ways[f"batches of {size} on {threads} threads"] = in_turn(ready)
        if threads > 1:
            ways[f"batches of {size}, {threads} at once"] = at_once(ready, pool)
    return ways


def compare(extractor: Extractor, count: int, side: int, rounds: int) -> None:
    """Print the medians of both, their ratio, and the quartiles of the ratio over the rounds."""
    threads = torch.get_num_threads()
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    ways = bare_passes(extractor, images, threads)
    tried = {way: [seconds(run)] for way, run in ways.items()}  # the first pass allocates; it counts for nothing
    tried = {way: [seconds(ways[way]) for _ in range(3)] for way in tried}
    best = min(tried, key=lambda way: float(np.median(tried[way])))
    with tempfile.TemporaryDirectory() as folder:
        for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            Image.fromarray(image).save(Path(folder, f"{i:06d}.png"))

        def whole() -> None:
            with tempfile.TemporaryDirectory() as work:
                source = FolderImages(folder)
                collect(source, extractor, score=InceptionScore(count), work_dir=Path(work), progress=False)

        whole()
        times = np.array([(seconds(ways[best]), seconds(whole)) for _ in range(rounds)])
    bare_median, whole_median = np.median(times, axis=0)
    low, high = np.quantile(times[:, 1] / times[:, 0], (0.25, 0.75))
    print(
        f"{extractor.name}, {count} images of {side} px, {threads} threads: bare network {count / bare_median:.1f} "
        f"images/s ({best}), whole pass {count / whole_median:.1f} images/s; ratio of the medians over {rounds} rounds "
        f"{whole_median / bare_median:.3f}, quartiles of the single ratios {low:.3f} and {high:.3f}"
    )


def main() -> None:
    """Compare both built-in extractors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=128, help="of 32 pixels, for EfficientNet-Lite0; 0 leaves it out")
    parser.add_argument("--inception-images", type=int, default=32, help="of 128 pixels; 0 leaves it out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.images:
        compare(load_extractor("efficientnet_lite0"), options.images, 32, options.rounds)
    if options.inception_images:
        compare(inception(), options.inception_images, 128, options.rounds)


if __name__ == "__main__":
    main()

"""Does multi-scale testing take constant memory in the number of views?

Peak resident memory of processes that test one image (512x683, 150 classes, Light-Ham VAN-Tiny) with one view of the largest
scale, with it and its mirror image, with the published 12 views, and with 36 views of sizes between the same two; each above
what the process holds with the network loaded. Several views need the sum of their probabilities, 4 bytes a pixel and class,
beside the largest view, whatever their number: the ratio is to these two together, and 1 means constant memory.

Run: python benchmarks/segmentation_memory.py
"""

import subprocess
import sys

import numpy as np
import torch

from hamgan.device import resolve_autocast
from hamgan.segmentation.evaluate import PUBLISHED_RATIOS, TestConfig, predict
from hamgan.segmentation.model import SegmentationConfig, Segmentor

HEIGHT, WIDTH, NUM_CLASSES = 512, 683, 150
CASES = {
    "1 view": TestConfig(ratios=(max(PUBLISHED_RATIOS),)),
    "2 views": TestConfig(ratios=(max(PUBLISHED_RATIOS),), flip=True),
    "12 views": TestConfig().multi_scale(),
    "36 views": TestConfig(ratios=tuple(np.linspace(0.5, 1.75, 18).tolist()), flip=True),
}


def peak_mb() -> float:
    """Return this process's peak resident memory, MB."""
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1e3


def measure(case: str) -> None:
    """Test one image; print the memory before and the peak."""
    torch.manual_seed(0)
    config = SegmentationConfig(backbone="van_tiny", rank=16, num_classes=NUM_CLASSES)
    model = Segmentor(config).eval().to(memory_format=torch.channels_last)
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    _, autocast = resolve_autocast("fp32", torch.device("cpu"))
    predict(model, image[:64, :64], TestConfig(scale=()), autocast)  # what the libraries load at first use
    before = peak_mb()
    predict(model, image, CASES[case], autocast)
    print(before, peak_mb())


def main() -> None:
    """Print the table."""
    if len(sys.argv) > 1:
        measure(sys.argv[1])
        return
    sums = 4e-6 * NUM_CLASSES * HEIGHT * WIDTH
    print(
        f"torch {torch.__version__}; image {HEIGHT}x{WIDTH}, {NUM_CLASSES} classes; peak resident memory above the network"
    )
    print(f"sums of probabilities: {sums:.0f} MB")
    least = 0.0
    for case in CASES:
        done = subprocess.run([sys.executable, __file__, case], capture_output=True, text=True, check=True)
        before, peak = map(float, done.stdout.split())
        least = least or peak - before + sums
        ratio = "" if case == "1 view" else f"  {(peak - before) / least:.2f} of one view and the sums"
        print(f"{case:>9}: {peak - before:7.0f} MB{ratio}")


if __name__ == "__main__":
    main()

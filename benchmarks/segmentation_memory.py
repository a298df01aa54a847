"""Does multi-scale testing take constant memory in the number of views?

Peak resident memory of processes that test one image (512x683, 150 classes, Light-Ham VAN-Tiny) with one view of the largest
scale, with the published 12 views, and with 36 views of sizes between the same two; each above what the process holds with the
network loaded. A ratio near 1 means that views cost time and no memory.

Run: python benchmarks/segmentation_memory.py
"""

import subprocess
import sys

import numpy as np
import torch

from hamgan.device import resolve_autocast
from hamgan.segmentation.evaluate import PUBLISHED_RATIOS, TestConfig, predict
from hamgan.segmentation.model import SegmentationConfig, Segmentor

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
    model = Segmentor(SegmentationConfig(backbone="van_tiny", rank=16)).eval().to(memory_format=torch.channels_last)
    image = np.random.default_rng(0).integers(0, 256, (512, 683, 3), dtype=np.uint8)
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
    print(f"torch {torch.__version__}; image 512x683, 150 classes; peak resident memory above the loaded network")
    base = 0.0
    for case in CASES:
        done = subprocess.run([sys.executable, __file__, case], capture_output=True, text=True, check=True)
        before, peak = map(float, done.stdout.split())
        base = base or peak - before
        print(f"{case:>9}: {peak - before:7.0f} MB  ratio {(peak - before) / base:.2f}")


if __name__ == "__main__":
    main()

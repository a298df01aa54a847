"""Prove a training file against its checksums."""

from pathlib import Path

from tqdm import tqdm

from hamgan.data.fileio import crc32
from hamgan.data.hdf5 import TrainingFile
from hamgan.data.storage import Sequential, find_runs

_SHOWN = 10


def verify(path: str | Path) -> int:
    """Read a whole training file and compare every block with its CRC32.

    The header (labels, class names, checksums, attributes) has a CRC32 of its own, which opening the file checks.

    Args:
        path: The file, or one joined from parts.

    Returns:
        Number of blocks, all of them as they were written.

    Raises:
        ValueError: If a block is damaged; the message names it.
        OSError: If the disk fails.
    """
    path = Path(path)
    with TrainingFile(path) as file:
        header, num_images, resolution = file.header, file.num_images, file.resolution
    runs = find_runs(path, header, num_images, resolution)
    if header is None or runs is None:
        raise ValueError(f"{path}: not written by hamgan, so it has no checksums to verify")
    reader = Sequential(runs, resolution * resolution * 3)
    damaged, first = [], 0
    with tqdm(total=num_images, desc=f"verifying {path.name}", unit=" images", delay=1) as bar:
        for number, (count, data) in enumerate(reader.blocks(header.block_images)):
            if crc32(data) != header.block_crc32[number]:
                damaged.append(f"block {number} (images {first}..{first + count - 1})")
            first += count
            bar.update(count)
    reader.close()
    num_blocks = len(header.block_crc32)
    if damaged:
        more = f" and {len(damaged) - _SHOWN} more" if len(damaged) > _SHOWN else ""
        listed = ", ".join(damaged[:_SHOWN])
        raise ValueError(f"{path}: {len(damaged)} of {num_blocks} blocks damaged: {listed}{more}")
    print(f"{path}: {num_images} images in {num_blocks} blocks, all as written")
    return num_blocks

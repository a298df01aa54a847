"""What is in a training file, in words."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from hamgan.data.hdf5 import TrainingFile

_SHOWN_CLASSES = 20
_SHOWN_MISSING = 5


def info(path: str | Path) -> dict[str, Any]:
    """Describe a training file.

    Returns:
        Plain values by name: path, bytes, format, resolution, num_images, num_classes, classes (count by name),
        fingerprint; and for our own format resize, background, source, source_fingerprint, shard, parts, missing,
        num_blocks, block_images, version and creator.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If it is not a training file, or a damaged one.
    """
    with TrainingFile(path) as file:
        header = file.header
        counts = np.bincount(file.labels, minlength=file.num_classes)
        described: dict[str, Any] = {
            "path": str(file.path),
            "bytes": file.path.stat().st_size,
            "format": "hamgan" if header is not None else "BigGAN-PyTorch or StudioGAN",
            "resolution": file.resolution,
            "num_images": file.num_images,
            "num_classes": file.num_classes,
            "classes": dict(zip(file.class_names, counts.tolist())),
            "fingerprint": file.fingerprint,
        }
    if header is not None:
        described |= {
            "resize": header.resize,
            "background": list(header.background),
            "source": header.source,
            "source_fingerprint": header.source_fingerprint,
            "shard": f"{header.shard[0]}/{header.shard[1]}",
            "parts": [name for name, _ in header.parts],
            "missing": dict(header.missing),
            "num_blocks": len(header.block_crc32),
            "block_images": header.block_images,
            "creator": header.creator,
        }
    return described


def info_text(path: str | Path) -> str:
    """Describe a training file in lines for a person; see `info`."""
    described = info(path)
    counts = described.pop("classes")
    missing = described.pop("missing", {})
    described["bytes"] = f"{described['bytes']} ({described['bytes'] / 1e6:.1f} MB)"
    if not described.get("parts", True):
        del described["parts"]
    width = max(map(len, described))
    lines = [f"{name:{width}}  {value if isinstance(value, str) else json.dumps(value)}"
             for name, value in described.items()]  # fmt: skip
    few, many = min(counts.values()), max(counts.values())
    lines.append(f"{'per class':{width}}  {few}..{many} images")
    for name in list(counts)[:_SHOWN_CLASSES]:
        lines.append(f"  {name}: {counts[name]}")
    if len(counts) > _SHOWN_CLASSES:
        lines.append(f"  and {len(counts) - _SHOWN_CLASSES} more classes")
    if missing:
        lines.append(f"{'left out':{width}}  {len(missing)} images that could not be read")
        lines += [f"  {key}: {missing[key]}" for key in list(missing)[:_SHOWN_MISSING]]
    return "\n".join(lines)

"""`hamgan sample`."""

import argparse
from pathlib import Path

from hamgan.cli.command import Commands, command


def add(commands: Commands) -> None:
    """Add the command."""
    sample = command(commands, "sample", _sample, "Draw images from a run's newest snapshot, or from a snapshot.")
    sample.add_argument("source", metavar="RUN_OR_SNAPSHOT", type=Path, help="a run folder or a .safetensors file")
    sample.add_argument("--seeds", default="0-7", help="numbers and ranges, such as 0-63,100 (default: 0-7)")
    sample.add_argument(
        "--classes", default="all", help="names, numbers, ranges, or all; every class takes every seed (default: all)"
    )
    sample.add_argument("--truncation", type=float, help="redraw components of z beyond this magnitude, such as 0.8")
    sample.add_argument(
        "--out",
        type=Path,
        default=Path("samples.png"),
        help="a .png (grid), an .npz, or a folder of images (default: samples.png)",
    )
    sample.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")


def _sample(options: argparse.Namespace) -> int:
    from hamgan import snapshot
    from hamgan.device import resolve_device
    from hamgan.sampling.output import write_samples

    shot = snapshot.read(snapshot.find(options.source))
    print(
        write_samples(
            shot.generator.to(resolve_device(options.device)),
            shot.class_names,
            seeds=options.seeds,
            classes=options.classes,
            truncation=options.truncation,
            out=options.out,
        )
    )
    return 0

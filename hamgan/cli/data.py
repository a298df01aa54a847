"""`hamgan data`."""

import argparse
from pathlib import Path

from hamgan.cli.command import Commands, command


def add(commands: Commands) -> None:
    """Add the command."""
    data = commands.add_parser("data", help="Build, join, check and look at training files.")
    actions = data.add_subparsers(metavar="ACTION", required=True)
    build = command(
        actions, "build", _data_build, "Build an HDF5 training file; the same command goes on after a kill."
    )
    build.add_argument("source", help="emoji (embedded), a folder of class folders, an archive or a published file")
    build.add_argument("out", type=Path, help="the .h5 file")
    build.add_argument("--resolution", type=int, required=True, help="height and width, pixels")
    build.add_argument("--resize", default="lanczos", help="lanczos, box, bilinear, tfgan or none (default: lanczos)")
    build.add_argument(
        "--background", type=_color, default="255,255,255", help="R,G,B behind transparent pixels (default: white)"
    )
    build.add_argument("--labels", type=Path, help="a CSV of path,label; or ImageNet's validation ground truth")
    build.add_argument("--classes", type=Path, help="a file with one class name a line")
    build.add_argument("--split", default="train", help="train or test, of published data sets (default: train)")
    build.add_argument("--shard", help="i/n: build the i-th of n parts, counted from 1")
    build.add_argument("--workers", type=int, help="decoding processes (default: one a core)")
    build.add_argument("--skip-bad", action="store_true", help="leave unreadable images out and list them")
    build.add_argument("--overwrite", action="store_true", help="replace a file that holds something else")
    merge = command(actions, "merge", _data_merge, "Join the parts that --shard built.")
    merge.add_argument("parts", type=Path, nargs="+", help="all parts, in any order")
    merge.add_argument("--out", type=Path, required=True, help="the joined .h5 file")
    merge.add_argument("--copy", action="store_true", help="copy the pixels, instead of referring to the parts")
    merge.add_argument("--overwrite", action="store_true", help="replace a file that holds something else")
    info = command(actions, "info", _data_info, "Print what a training file holds.")
    info.add_argument("file", type=Path)
    verify = command(actions, "verify", _data_verify, "Check every block of a training file against its checksum.")
    verify.add_argument("file", type=Path)
    show = command(actions, "show", _data_show, "Draw a labelled contact sheet of a training file.")
    show.add_argument("file", type=Path)
    show.add_argument("out", type=Path, nargs="?", default=Path("contact-sheet.png"), help="the .png to write")
    bench = command(actions, "bench", _data_bench, "Measure how fast a training file can be read, and what limits it.")
    bench.add_argument("file", type=Path)
    bench.add_argument("--batch-size", type=int, default=256, help="images a batch (default: 256)")


def _color(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) <= 255 for part in parts):
        raise argparse.ArgumentTypeError(f"'{text}' is not R,G,B with each 0..255")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _data_build(options: argparse.Namespace) -> int:
    from hamgan.data.build import build

    build(
        options.source,
        options.out,
        resolution=options.resolution,
        resize=options.resize,
        background=options.background,
        labels=options.labels,
        classes=options.classes,
        split=options.split,
        shard=options.shard,
        workers=options.workers,
        skip_bad=options.skip_bad,
        overwrite=options.overwrite,
    )
    return 0


def _data_merge(options: argparse.Namespace) -> int:
    from hamgan.data.merge import merge

    merge(options.parts, options.out, copy=options.copy, overwrite=options.overwrite)
    return 0


def _data_info(options: argparse.Namespace) -> int:
    from hamgan.data.info import info_text

    print(info_text(options.file))
    return 0


def _data_verify(options: argparse.Namespace) -> int:
    from hamgan.data.verify import verify

    verify(options.file)
    return 0


def _data_show(options: argparse.Namespace) -> int:
    from hamgan.data.show import contact_sheet

    contact_sheet(options.file, options.out)
    return 0


def _data_bench(options: argparse.Namespace) -> int:
    from hamgan.data.bench import bench

    bench(options.file, batch_size=options.batch_size)
    return 0

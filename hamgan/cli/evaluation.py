"""`hamgan eval` and `hamgan stats`."""

import argparse
from pathlib import Path

from hamgan.cli.command import Commands, command


def add(commands: Commands) -> None:
    """Add both."""
    _add_eval(commands)
    _add_stats(commands)


def _add_eval(commands: Commands) -> None:
    parser = command(commands, "eval", _eval, "Measure a run's newest snapshot, a snapshot, or images.")
    parser.add_argument(
        "source", metavar="RUN_OR_SNAPSHOT", type=Path, nargs="?", help="a run folder or a .safetensors"
    )
    parser.add_argument("--images", type=Path, help="a folder of images instead")
    parser.add_argument("--npz", type=Path, help="an .npz of images, arr_0 (N, H, W, 3), instead")
    parser.add_argument("--data", type=Path, help="the training file to compare with (default: the run's)")
    parser.add_argument("--reference", type=Path, help="stored statistics to compare with, instead of a training file")
    parser.add_argument("--dataset", help="name that --reference must be of (default: the training file's, if known)")
    parser.add_argument("--protocol", default="embedded", help="embedded, biggan or hamgan (default: embedded)")
    parser.add_argument("--extractor", help="inception, efficientnet_lite0, dinov2 or clip, outside any protocol")
    parser.add_argument("--input", help="that extractor's input pipeline, such as pytorch-fid (default: its own)")
    parser.add_argument("--num-images", type=int, help="generated images (default: the protocol's)")
    parser.add_argument(
        "--labels", choices=("uniform", "data"), default="uniform", help="their classes (default: uniform)"
    )
    parser.add_argument("--truncation", type=float, help="redraw components of z beyond this magnitude")
    parser.add_argument("--z-scale", type=float, default=1.0, help="multiply z by this; another thing (default: 1)")
    parser.add_argument(
        "--batch-norm",
        choices=("auto", "running", "standing"),
        default="auto",
        help="running: training's statistics; standing: recalibrate's, for the truncation; auto: these where they reach",
    )
    parser.add_argument("--weights", type=Path, help="the extractor's weights, where they are not found by themselves")
    parser.add_argument("--out", type=Path, help="folder of the card (default: beside the snapshot, or ./eval)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")


def _eval(options: argparse.Namespace) -> int:
    if sum(value is not None for value in (options.source, options.images, options.npz)) != 1:
        raise ValueError("eval needs exactly one of RUN_OR_SNAPSHOT, --images DIR and --npz FILE")
    from hamgan import dist
    from hamgan.device import resolve_device
    from hamgan.evaluation import EvaluationPlan, run_evaluation

    device = resolve_device(options.device)
    dist.init(device)
    plan = EvaluationPlan(
        protocol=options.protocol,
        extractor=options.extractor,
        input_protocol=options.input,
        num_images=options.num_images,
        labels=options.labels,
        truncation=options.truncation,
        z_scale=options.z_scale,
        batch_norm=options.batch_norm,
        weights=options.weights,
        device=device,
    )
    card = run_evaluation(
        plan,
        source=options.source,
        images=options.images,
        npz=options.npz,
        data=options.data,
        statistics=options.reference,
        out=options.out,
        dataset=options.dataset,
    )
    dist.print0(card)
    dist.shutdown()
    return 0


def _add_stats(commands: Commands) -> None:
    stats = commands.add_parser("stats", help="Build, look at and check stored statistics of real images.")
    actions = stats.add_subparsers(metavar="ACTION", required=True)
    build = command(actions, "build", _stats_build, "Store the statistics of a training file or a folder of images.")
    build.add_argument(
        "images", metavar="DATA", type=Path, help="an .h5 training file, or a folder, walked recursively"
    )
    build.add_argument("out", type=Path, help="the .npz")
    build.add_argument("--extractor", default="inception", help="inception, efficientnet_lite0, dinov2 or clip")
    build.add_argument("--protocol", help="input pipeline of the extractor (default: its own)")
    build.add_argument("--weights", type=Path, help="local weights of the extractor")
    build.add_argument(
        "--dataset", help="name kept with the statistics, equal for parts to be merged (default: the file's)"
    )
    build.add_argument("--split", help="train, validation, ...: kept with the statistics")
    build.add_argument("--resolution", type=int, help="cut and resize a folder's images to this side, pixels")
    build.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")
    merge = command(actions, "merge", _stats_merge, "Join statistics of parts of a data set, exactly.")
    merge.add_argument("parts", type=Path, nargs="+", help="the .npz of each part")
    merge.add_argument("--out", type=Path, required=True, help="the joined .npz")
    inspect = command(actions, "inspect", _stats_inspect, "Print what stored statistics are of.")
    inspect.add_argument("file", type=Path)
    check = command(actions, "check", _stats_check, "Check stored statistics for consistency.")
    check.add_argument("file", type=Path)
    check.add_argument("--resolution", type=int, help="that they must be of, pixels")
    check.add_argument("--dataset", help="that they must be of")


def _stats_build(options: argparse.Namespace) -> int:
    from hamgan import dist
    from hamgan.device import resolve_device
    from hamgan.evaluation import build_reference

    device = resolve_device(options.device)
    dist.init(device)
    line = build_reference(
        options.images,
        options.out,
        extractor=options.extractor,
        protocol=options.protocol,
        weights=options.weights,
        dataset=options.dataset,
        split=options.split,
        resolution=options.resolution,
        device=device,
    )
    dist.print0(line)
    dist.shutdown()
    return 0


def _stats_merge(options: argparse.Namespace) -> int:
    from hamgan.metrics import merge_statistics

    merge_statistics(options.parts, options.out)
    print(f"{options.out}: joined from {len(options.parts)} files")
    return 0


def _stats_inspect(options: argparse.Namespace) -> int:
    from hamgan.metrics import inspect_statistics

    print(inspect_statistics(options.file), end="")
    return 0


def _stats_check(options: argparse.Namespace) -> int:
    from hamgan.metrics import check_statistics

    warnings = check_statistics(options.file, resolution=options.resolution, dataset=options.dataset)
    print("\n".join([f"warning: {line}" for line in warnings] or [f"{options.file}: consistent"]))
    return 0

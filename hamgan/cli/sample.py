"""`hamgan sample`."""

import argparse
from pathlib import Path

from hamgan.cli.command import Commands, command


def add(commands: Commands) -> None:
    """Add the command."""
    sample = command(commands, "sample", _sample, "Draw images from a run's newest snapshot, or from snapshots.")
    sample.add_argument(
        "sources",
        metavar="RUN_OR_SNAPSHOT",
        type=Path,
        nargs="+",
        help="a run folder or a .safetensors file; several are shown side by side",
    )
    add_drawing_options(sample, seeds="0-7", classes="all", out="samples.png")
    sample.add_argument(
        "--num-images", type=int, help="instead of --seeds: this many, classes in turn, as eval draws them"
    )
    sample.add_argument("--labels", action="store_true", help="name classes and seeds in a picture")
    sample.add_argument(
        "--nearest", metavar="DATA", type=Path, help="show the nearest images of a training file beside each"
    )
    sample.add_argument("--neighbours", type=int, default=3, help="how many of them (default: 3)")
    sample.add_argument(
        "--extractor",
        default="efficientnet_lite0",
        help="feature network that finds them (default: efficientnet_lite0)",
    )
    sample.add_argument("--weights", type=Path, help="its weights, where they are not found by themselves")
    sample.add_argument("--fps", type=int, default=24, help="frames a second of a video (default: 24)")


def add_drawing_options(parser: argparse.ArgumentParser, *, seeds: str, classes: str, out: str) -> None:
    """Add the options that every command that draws has; their defaults differ."""
    parser.add_argument("--seeds", default=seeds, help=f"numbers and ranges, such as 0-63,100 (default: {seeds})")
    parser.add_argument(
        "--classes", default=classes, help=f"names, numbers, ranges, or all; separated by commas (default: {classes})"
    )
    parser.add_argument("--truncation", type=float, help="redraw components of z beyond this magnitude, such as 0.8")
    parser.add_argument(
        "--z-scale", type=float, default=1.0, help="multiply z by this; another thing than truncation (default: 1)"
    )
    parser.add_argument(
        "--batch-norm",
        choices=("auto", "running", "standing"),
        default="auto",
        help="running: training's statistics; standing: recalibrate's, for the truncation; auto: these where they reach",
    )
    parser.add_argument(
        "--out", type=Path, default=Path(out), help=f"what to write (default: {out}); see docs/sampling.md"
    )
    parser.add_argument(
        "--zoom", type=int, choices=range(1, 17), metavar="1..16", help="enlarge the images of a picture"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")


def _sample(options: argparse.Namespace) -> int:
    from hamgan.device import resolve_device
    from hamgan.evaluation import EvaluationPlan
    from hamgan.gallery import open_drawers, write_nearest
    from hamgan.sampling.output import select, write_loop, write_samples
    from hamgan.sampling.video import SUFFIXES

    device = resolve_device(options.device)
    drawers = open_drawers(options.sources, truncation=options.truncation, batch_norm=options.batch_norm, device=device)
    selection = select(
        drawers[0],
        seeds=options.seeds,
        classes=options.classes,
        num_images=options.num_images,
        truncation=options.truncation,
        z_scale=options.z_scale,
    )
    if len(drawers) > 1 and (options.nearest is not None or options.out.suffix in SUFFIXES):
        raise ValueError("--nearest and videos show one snapshot at a time")
    if options.nearest is not None:
        plan = EvaluationPlan(extractor=options.extractor, weights=options.weights, device=device)
        line = write_nearest(
            drawers[0],
            selection,
            options.out,
            data=options.nearest,
            plan=plan,
            num_neighbours=options.neighbours,
            zoom=options.zoom,
        )
    elif options.out.suffix in SUFFIXES:
        line = write_loop(drawers[0], selection, options.out, frames_per_second=options.fps, zoom=options.zoom)
    else:
        line = write_samples(drawers, selection, options.out, labelled=options.labels, zoom=options.zoom)
    print(line)
    return 0

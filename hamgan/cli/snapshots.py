"""`hamgan recalibrate`, `hamgan sweep` and `hamgan card`: what belongs to a snapshot beside its images."""

import argparse
from pathlib import Path

from hamgan.cli.command import Commands, command


def add(commands: Commands) -> None:
    """Add all three."""
    recalibrate = command(
        commands,
        "recalibrate",
        _recalibrate,
        "Measure batch norm's statistics for truncations; keep them in the snapshot.",
    )
    recalibrate.add_argument("source", metavar="RUN_OR_SNAPSHOT", type=Path, help="a run folder or a .safetensors file")
    recalibrate.add_argument(
        "--truncations",
        default="0.1..1.0",
        help="levels: numbers, ranges A..B (in tenths) or A..B..STEP, none (default: 0.1..1.0)",
    )
    recalibrate.add_argument("--num-images", type=int, default=6400, help="for each level (default: 6400)")
    recalibrate.add_argument("--batch-size", type=int, default=128, help="normalised together (default: 128)")
    recalibrate.add_argument("--out", type=Path, help="another snapshot to write (default: the snapshot itself)")
    recalibrate.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")

    sweep = command(
        commands, "sweep", _sweep, "Draw the trade-off of Inception Score and Frechet distance over truncation."
    )
    sweep.add_argument("source", metavar="RUN_OR_SNAPSHOT", type=Path, help="a run folder or a .safetensors file")
    sweep.add_argument(
        "--truncations", default="0.1..1.0,none", help="levels, as of recalibrate (default: 0.1..1.0,none)"
    )
    sweep.add_argument("--data", type=Path, help="the training file to compare with (default: the run's)")
    sweep.add_argument("--reference", type=Path, help="stored statistics to compare with, instead of a training file")
    sweep.add_argument("--dataset", help="name that --reference must be of (default: the training file's, if known)")
    sweep.add_argument("--protocol", default="embedded", help="embedded, biggan or hamgan (default: embedded)")
    sweep.add_argument("--extractor", help="inception or efficientnet_lite0, outside any protocol")
    sweep.add_argument("--weights", type=Path, help="the extractor's weights, where they are not found by themselves")
    sweep.add_argument("--num-images", type=int, help="generated images a level (default: the protocol's)")
    sweep.add_argument(
        "--batch-norm",
        choices=("auto", "running", "standing"),
        default="auto",
        help="running: training's statistics; standing: recalibrate's, for the truncation; auto: these where they reach",
    )
    sweep.add_argument("--out", type=Path, help="the folder (default: sweep-SNAPSHOT beside the snapshot)")
    sweep.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")

    card = command(commands, "card", _card, "Write a snapshot's model card again, with the evaluations made since.")
    card.add_argument("source", metavar="RUN_OR_SNAPSHOT", type=Path, help="a run folder or a .safetensors file")


def _recalibrate(options: argparse.Namespace) -> int:
    from hamgan.device import resolve_device
    from hamgan.recalibration import recalibrate
    from hamgan.sampling.latents import parse_truncations

    print(
        recalibrate(
            options.source,
            parse_truncations(options.truncations),
            out=options.out,
            num_images=options.num_images,
            batch_size=options.batch_size,
            device=resolve_device(options.device),
        )
    )
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from hamgan import dist
    from hamgan.device import resolve_device
    from hamgan.evaluation import EvaluationPlan
    from hamgan.sampling.latents import parse_truncations
    from hamgan.sweep import sweep

    device = resolve_device(options.device)
    dist.init(device)
    plan = EvaluationPlan(
        protocol=options.protocol,
        extractor=options.extractor,
        num_images=options.num_images,
        weights=options.weights,
        batch_norm=options.batch_norm,
        device=device,
    )
    table = sweep(
        options.source,
        parse_truncations(options.truncations),
        plan,
        data=options.data,
        statistics=options.reference,
        dataset=options.dataset,
        out=options.out,
    )
    dist.print0(table)
    dist.shutdown()
    return 0


def _card(options: argparse.Namespace) -> int:
    from hamgan import model_card, snapshot

    print(model_card.write(snapshot.find(options.source)))
    return 0

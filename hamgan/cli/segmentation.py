"""`hamgan segmentation`."""

import argparse
from pathlib import Path

from hamgan.cli.command import Commands, command
from hamgan.config import help_page

OPTIONS = ("--help", "--root", "--run-dir", "--help-config")
"""Of `train`; what else it is given are keys of the configuration."""
OVERRIDES = "any key of the configuration: --section.key value, such as --model.rank 64 or --steps 2000"


def add(commands: Commands) -> None:
    """Add the group."""
    group = commands.add_parser("segmentation", help="Train, test and use HamNet and Light-Ham.")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    _add_train(actions)
    _add_eval(actions)
    _add_predict(actions)
    command(actions, "count", _count, "Print parameters and multiply-adds beside the published ones.")


def _add_train(actions: Commands) -> None:
    train = command(actions, "train", _train, "Train a segmentor, or go on with a run that was stopped.")
    train.epilog = f"Overrides: {OVERRIDES}."
    train.add_argument(
        "preset",
        nargs="?",
        default="configs/segmentation_demo.toml",
        help="a TOML preset (default: configs/segmentation_demo.toml, which needs no download)",
    )
    train.add_argument("--root", type=Path, default=Path("runs"), help="where run folders lie (default: runs)")
    train.add_argument("--run-dir", type=Path, help="this run folder, instead of the preset's newest or a new one")
    train.add_argument("--help-config", action="store_true", help="print every key of the configuration, and leave")


def _train(options: argparse.Namespace) -> int:
    from hamgan.segmentation.config import TrainConfig, load_config

    if options.help_config:
        print(help_page(TrainConfig))
        return 0
    config = load_config(options.preset, options.overrides)
    from hamgan import dist
    from hamgan.progress import Stopped
    from hamgan.segmentation.training import train

    try:
        train(config, preset=Path(options.preset).stem, root=options.root, run_dir=options.run_dir)
    except Stopped as stopped:
        dist.print0(stopped)
        return stopped.exit_code
    finally:
        dist.shutdown()
    return 0


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Add what `eval` and `predict` share."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="a run folder, a checkpoint, or a public file")
    parser.add_argument("--multi-scale", action="store_true", help="the published test: six scales, each mirrored too")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "auto"), default="fp32", help="of the network (default: fp32)"
    )


def _add_eval(actions: Commands) -> None:
    parser = command(
        actions, "eval", _eval, "Test a segmentor on labelled images; the same command goes on after a kill."
    )
    _add_model(parser)
    parser.add_argument("--data", type=Path, help="the data set's folder (default: the run's)")
    parser.add_argument(
        "--kind", help="ade20k, pascal_context, voc, folders or scenes (default: the run's; needed for a public file)"
    )
    parser.add_argument("--split", help="of the data (default: the run's test split)")
    parser.add_argument("--num-images", type=int, help="the first so many images (default: all)")
    parser.add_argument("--predictions", action="store_true", help="write every prediction as a PNG too")
    parser.add_argument("--num-worst", type=int, default=6, help="how many of the worst images to draw (default: 6)")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that read images ahead (default: 0)")
    parser.add_argument("--out", type=Path, help="folder of the card (default: beside the checkpoint)")


def _eval(options: argparse.Namespace) -> int:
    from hamgan import config as configuration
    from hamgan import dist
    from hamgan.segmentation.open_data import DataConfig, open_data
    from hamgan.segmentation.testing import EvaluationPlan, card_text, evaluate
    from hamgan.segmentation.trained import open_trained

    trained = open_trained(options.model)
    given = {"kind": options.kind, "path": str(options.data) if options.data else None, "test_split": options.split}
    given = {key: value for key, value in given.items() if value is not None}
    if trained.data is None and "kind" not in given:
        raise ValueError(f"{trained.path}: does not tell its data; give --kind and --data")
    base = configuration.to_mapping(trained.data) if trained.data else {}
    if given.get("kind") == "scenes" and "test_split" not in given:
        given["test_split"] = "test"
    data_config = configuration.from_mapping(DataConfig, base | given, "command line")
    plan = EvaluationPlan(
        split=data_config.test_split,
        test=trained.test.multi_scale() if options.multi_scale else trained.test,
        num_images=options.num_images,
        num_worst=options.num_worst,
        save_predictions=options.predictions,
        device=options.device,
        precision=options.precision,
        num_workers=options.num_workers,
    )
    views = "-multi-scale" if options.multi_scale else ""
    out = options.out or trained.path.parent / f"eval-{trained.path.stem}-{data_config.test_split}{views}"
    try:
        card = evaluate(trained, open_data(data_config, data_config.test_split), plan, out)
        dist.print0(card_text(card))
        dist.print0(f"card, worst images: {out}")
    finally:
        dist.shutdown()
    return 0


def _add_predict(actions: Commands) -> None:
    parser = command(actions, "predict", _predict, "Segment images of any size: writes a mask and an overlay of each.")
    _add_model(parser)
    parser.add_argument("images", type=Path, nargs="+", help="image files, or folders of them")
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="folder (default: predictions)")


def _predict(options: argparse.Namespace) -> int:
    from hamgan.segmentation.testing import predict_files
    from hamgan.segmentation.trained import open_trained

    trained = open_trained(options.model)
    test = trained.test.multi_scale() if options.multi_scale else trained.test
    count = predict_files(
        trained,
        options.images,
        options.out,
        test=test,
        device=options.device,
        precision=options.precision,
    )
    print(f"{options.out}: masks and overlays of {count} images")
    return 0


def _count(options: argparse.Namespace) -> int:
    from hamgan.segmentation.count import count_table

    print(count_table())
    return 0

"""`hamgan train`."""

import argparse
from pathlib import Path

from hamgan.cli.command import Commands, command
from hamgan.config import help_page

OPTIONS = ("--help", "--root", "--run-dir", "--dry-run", "--help-config")
OVERRIDES = (
    "any key of the configuration: --section.key value, such as --generator.channels 32 or --duration '500 kimg'"
)


def add(commands: Commands) -> None:
    """Add the command."""
    train = command(commands, "train", _train, "Train a generator, or go on with a run that was stopped.")
    train.epilog = f"Overrides: {OVERRIDES}."
    train.add_argument(
        "preset", nargs="?", default="configs/emoji32.toml", help="a TOML preset (default: configs/emoji32.toml)"
    )
    train.add_argument("--root", type=Path, default=Path("runs"), help="where run folders lie (default: runs)")
    train.add_argument("--run-dir", type=Path, help="this run folder, instead of the preset's newest or a new one")
    train.add_argument(
        "--dry-run", action="store_true", help="print configuration, parameters, FLOPs and memory, and leave"
    )
    train.add_argument("--help-config", action="store_true", help="print every key of the configuration, and leave")


def _train(options: argparse.Namespace) -> int:
    from hamgan.training.config import TrainConfig, load_config

    if options.help_config:
        print(help_page(TrainConfig))
        return 0
    config = load_config(options.preset, options.overrides)
    preset = Path(options.preset).stem
    if options.dry_run:
        from hamgan.training.estimate import dry_run

        print(dry_run(config, preset=preset, root=options.root, run_dir=options.run_dir))
        return 0
    from hamgan import dist
    from hamgan.progress import Stopped
    from hamgan.training.loop import train

    try:
        train(config, preset=preset, root=options.root, run_dir=options.run_dir)
    except Stopped as stopped:
        dist.print0(stopped)
        return stopped.exit_code
    finally:
        dist.shutdown()
    return 0

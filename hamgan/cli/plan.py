"""`hamgan plan`."""

import argparse

from hamgan.cli.command import Commands, command
from hamgan.cli.train import OVERRIDES

OPTIONS = ("--help", "--processes", "--memory")


def add(commands: Commands) -> None:
    """Add the command."""
    plan = command(commands, "plan", _plan, "Say what a run will cost on this machine, and which micro-batch fits.")
    plan.epilog = f"Overrides: {OVERRIDES}."
    plan.add_argument("preset", help="a TOML preset")
    plan.add_argument("--processes", type=int, default=1, help="how many will share the batch (default: 1)")
    plan.add_argument("--memory", type=float, metavar="GB", help="memory of one process (default: what is free now)")


def _plan(options: argparse.Namespace) -> int:
    from hamgan.training.config import load_config
    from hamgan.training.plan import describe, plan

    config = load_config(options.preset, options.overrides)
    print(describe(config, plan(config, processes=options.processes, memory_gb=options.memory)))
    return 0

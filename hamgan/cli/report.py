"""`hamgan report`."""

import argparse
import sys
from pathlib import Path

from hamgan.cli.command import Commands, command


def add(commands: Commands) -> None:
    """Add the command."""
    report = command(
        commands, "report", _report, "Show a run in one HTML file: curves, grids over time, metrics, events."
    )
    report.add_argument("run_dir", metavar="RUN", type=Path, help="a run folder; it may still be training")
    report.add_argument("--out", type=Path, help="the file (default: RUN/report.html)")


def _report(options: argparse.Namespace) -> int:
    from hamgan.report import write_report

    summary = write_report(options.run_dir, options.out)
    for line in summary.left_out:
        print(f"left out: {line}", file=sys.stderr)
    print(summary)
    return 0

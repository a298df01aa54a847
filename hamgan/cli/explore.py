"""`hamgan explore`."""

import argparse
from pathlib import Path

from hamgan.cli.command import Commands, command

PORT = 7860


def add(commands: Commands) -> None:
    """Add the command."""
    explore = command(commands, "explore", _explore, "Serve a page to play with a snapshot (extra: explore).")
    explore.add_argument("source", metavar="RUN_OR_SNAPSHOT", type=Path, help="a run folder or a .safetensors file")
    explore.add_argument("--port", type=int, default=PORT, help=f"0: any that is free (default: {PORT})")
    explore.add_argument(
        "--host", default="127.0.0.1", help="address to serve on; others than 127.0.0.1 let other machines in"
    )
    explore.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")


def _explore(options: argparse.Namespace) -> int:
    from hamgan.device import resolve_device
    from hamgan.explore.explorer import open_explorer
    from hamgan.explore.server import listen, require_gradio, serve

    explorer = open_explorer(options.source, resolve_device(options.device))
    require_gradio()
    serve(explorer, listen(options.host, options.port))
    return 0

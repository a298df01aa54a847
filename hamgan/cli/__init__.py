"""The command line: parse and call. What a command does lives in the package; torch is imported by what needs it."""

import argparse
import os
import sys
from collections.abc import Sequence

from hamgan import __version__
from hamgan.cli import data, evaluation, interop, latent, sample, snapshots, train
from hamgan.config import split_options

EXIT_BAD_INPUT = 2
COMMANDS = (train, sample, latent, snapshots, data, evaluation, interop)
"""In the order of the help page; each module adds its commands."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0; 2 for bad input, after one line that says what and where; 128 + n when left on signal n.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    overrides: list[str] = []
    if arguments[:1] == ["train"]:
        arguments, overrides = split_options(arguments, train.OPTIONS)
    options = _parser().parse_args(arguments)
    options.overrides = overrides
    try:
        return options.run(options)
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:
        if os.environ.get("HAMGAN_TRACEBACK"):
            raise
        return _refuse(_one_line(error))
    except (MemoryError, RuntimeError) as error:
        if (
            "out of memory" not in str(error)
            and "allocate memory" not in str(error)
            and not isinstance(error, MemoryError)
        ):
            raise
        return _refuse("out of memory; take a smaller micro_batch, batch_size or channels")
    except KeyboardInterrupt:
        print("hamgan: interrupted", file=sys.stderr)
        return 130


def _refuse(line: str) -> int:
    rank = os.environ.get("RANK", "0")
    print(f"hamgan: error: {'' if rank == '0' else f'rank {rank}: '}{line}", file=sys.stderr)
    return EXIT_BAD_INPUT


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hamgan", description="Train and sample class-conditional GANs with Hamburger blocks.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"hamgan {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add(commands)
    return parser

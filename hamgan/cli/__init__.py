"""The command line: parse and call. What a command does lives in the package; torch is imported by what needs it."""

import argparse
import os
import sys
from collections.abc import Sequence

from hamgan import __version__
from hamgan.cli import data, evaluation, explore, interop, latent, plan, report, sample, segmentation, snapshots, train
from hamgan.config import split_options

EXIT_BAD_INPUT = 2
EXIT_LEFT_BEHIND = 1
"""Of a process that leaves because another one has failed."""
LONGEST_LINE = 1500
"""Letters of an error; what a stranger's file holds may be longer."""
TOO_LARGE = ("out of memory", "allocate memory", "size calculation overflowed")
COMMANDS = (train, plan, report, sample, latent, explore, snapshots, data, evaluation, interop, segmentation)
"""In the order of the help page; each module adds its commands."""
OVERRIDABLE = {("train",): train.OPTIONS, ("plan",): plan.OPTIONS, ("segmentation", "train"): segmentation.OPTIONS}
"""Commands that take any key of a configuration beside these options of their own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0; 2 for bad input, after one line that says what and where; 128 + n when left on signal n.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    overrides: list[str] = []
    for words, own in OVERRIDABLE.items():
        if tuple(arguments[: len(words)]) == words:
            arguments, overrides = split_options(arguments, own)
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
        if os.environ.get("HAMGAN_TRACEBACK"):
            raise
        if _lost_connection(error):
            return _refuse("lost the connection to another process", EXIT_LEFT_BEHIND)
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in TOO_LARGE):
            raise
        return _refuse("out of memory; take a smaller micro_batch, batch_size or channels")
    except Exception as error:
        if not _is_left_behind(error):
            raise
        return EXIT_LEFT_BEHIND
    except KeyboardInterrupt:
        print("hamgan: interrupted", file=sys.stderr)
        return 130


def _refuse(line: str, code: int = EXIT_BAD_INPUT) -> int:
    """Print an error once, whatever the number of processes."""
    rank = os.environ.get("RANK", "0")
    distribution = sys.modules.get("hamgan.dist")
    if distribution.speaks_for_all() if distribution else os.environ.get("LOCAL_RANK", rank) == "0":
        print(f"hamgan: error: {'' if rank == '0' else f'rank {rank}: '}{line}", file=sys.stderr, flush=True)
    return code


def _lost_connection(error: Exception) -> bool:
    distribution = sys.modules.get("hamgan.dist")
    return distribution is not None and "RANK" in os.environ and distribution.is_lost_connection(error)


def _is_left_behind(error: Exception) -> bool:
    distribution = sys.modules.get("hamgan.dist")
    return distribution is not None and isinstance(error, distribution.LeftBehindError)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    line = " ".join(str(error).split())
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hamgan", description="Train and sample class-conditional GANs with Hamburger blocks.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"hamgan {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add(commands)
    return parser

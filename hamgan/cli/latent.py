"""`hamgan interpolate`, `hamgan codes` and `hamgan directions`: walks, segments and edits."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hamgan.cli.command import Commands, command
from hamgan.cli.sample import add_drawing_options

if TYPE_CHECKING:
    from hamgan.sampling.output import Drawer, Selection


def add(commands: Commands) -> None:
    """Add all three."""
    walk = command(
        commands, "interpolate", _interpolate, "Walk from seed to seed, from class to class, or both at once."
    )
    walk.add_argument("source", metavar="RUN_OR_SNAPSHOT", type=Path, help="a run folder or a .safetensors file")
    add_drawing_options(walk, seeds="0-2", classes="0", out="interpolation.png")
    walk.add_argument(
        "--along",
        choices=("z", "class", "both"),
        default="z",
        help="z: a row a class, through all seeds; class: a row a seed, through all classes; both: one row (default: z)",
    )
    walk.add_argument(
        "--curve", choices=("spherical", "linear"), default="spherical", help="between seeds (default: spherical)"
    )
    walk.add_argument(
        "--frames", type=int, help="images from one seed or class to the next (default: 6; a second of a video)"
    )
    walk.add_argument("--loop", action="store_true", help="come back to the first seed or class")
    walk.add_argument("--fps", type=int, default=24, help="frames a second of a video (default: 24)")

    codes = command(
        commands, "codes", _codes, "Show the Hamburger's codes as soft segments, and its bases' usage over K."
    )
    codes.add_argument("source", metavar="RUN_OR_SNAPSHOT", type=Path, help="a run folder or a .safetensors file")
    add_drawing_options(codes, seeds="0-5", classes="0", out="codes.png")
    codes.add_argument(
        "--ham", type=int, default=0, help="which Hamburger, from 0, where there are several (default: 0)"
    )
    codes.add_argument("--segments", type=int, default=6, help="segments shown one by one (default: 6)")

    directions = command(commands, "directions", _directions, "Edit images along a layer's principal directions.")
    directions.add_argument("source", metavar="RUN_OR_SNAPSHOT", type=Path, help="a run folder or a .safetensors file")
    add_drawing_options(directions, seeds="0", classes="0", out="directions.png")
    directions.add_argument(
        "--layer", default="0", help="0: the first linear map; 1, 2, ...: a block; or all (default: 0)"
    )
    directions.add_argument("--directions", type=int, default=5, help="of each layer, the strongest (default: 5)")
    directions.add_argument(
        "--reach", type=float, default=3.0, help="of the outermost edits, in deviations (default: 3)"
    )
    directions.add_argument("--steps", type=int, default=7, help="images of a strip, odd (default: 7)")


def _interpolate(options: argparse.Namespace) -> int:
    from hamgan.sampling.interpolate import walks
    from hamgan.sampling.output import write_walks
    from hamgan.sampling.video import SUFFIXES

    drawer, selection = _opened(options)
    config = drawer.G.config
    rows = walks(
        selection.seeds,
        selection.classes,
        z_dim=config.z_dim,
        num_classes=config.num_classes,
        class_names=drawer.class_names,
        along=options.along,
        frames=options.frames if options.frames is not None else options.fps if options.out.suffix in SUFFIXES else 6,
        curve=options.curve,
        loop=options.loop,
        truncation=options.truncation,
        z_scale=options.z_scale,
    )
    print(write_walks(drawer, rows, options.out, frames_per_second=options.fps, zoom=options.zoom))
    return 0


def _codes(options: argparse.Namespace) -> int:
    from hamgan.sampling.codes_figure import write_codes

    drawer, selection = _opened(options)
    print(
        write_codes(drawer, selection, options.out, ham=options.ham, num_segments=options.segments, zoom=options.zoom)
    )
    return 0


def _directions(options: argparse.Namespace) -> int:
    from hamgan.sampling.directions import chosen_directions
    from hamgan.sampling.output import write_directions

    drawer, selection = _opened(options)
    print(
        write_directions(
            drawer,
            chosen_directions(drawer.G, options.layer),
            selection,
            options.out,
            num_directions=options.directions,
            reach=options.reach,
            num_steps=options.steps,
            zoom=options.zoom,
        )
    )
    return 0


def _opened(options: argparse.Namespace) -> "tuple[Drawer, Selection]":
    """Open the snapshot and read seeds and classes."""
    from hamgan.device import resolve_device
    from hamgan.gallery import open_drawer
    from hamgan.sampling.output import select

    drawer = open_drawer(
        options.source,
        truncation=options.truncation,
        batch_norm=options.batch_norm,
        device=resolve_device(options.device),
    )
    selection = select(
        drawer,
        seeds=options.seeds,
        classes=options.classes,
        truncation=options.truncation,
        z_scale=options.z_scale,
    )
    return drawer, selection

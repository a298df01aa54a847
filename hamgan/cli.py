"""The command line: parse and call. What a command does lives in the package; torch is imported by what needs it."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hamgan import __version__
from hamgan.config import help_page, split_options

EXIT_BAD_INPUT = 2
TRAIN_OPTIONS = ("--help", "--root", "--run-dir", "--dry-run", "--help-config")
OVERRIDES = (
    "any key of the configuration: --section.key value, such as --generator.channels 32 or --duration '500 kimg'"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0; 2 for bad input, after one line that says what and where; 128 + n when left on signal n.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    overrides: list[str] = []
    if arguments[:1] == ["train"]:
        arguments, overrides = split_options(arguments, TRAIN_OPTIONS)
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
    _add_train(commands)
    _add_sample(commands)
    _add_data(commands)
    _add_eval(commands)
    _add_stats(commands)
    _add_import(commands)
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def _add_train(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    train = _command(commands, "train", _train, "Train a generator, or go on with a run that was stopped.")
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
    from hamgan.training.loop import Stopped, train

    try:
        train(config, preset=preset, root=options.root, run_dir=options.run_dir)
    except Stopped as stopped:
        dist.print0(stopped)
        return stopped.exit_code
    finally:
        dist.shutdown()
    return 0


def _add_sample(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sample = _command(commands, "sample", _sample, "Draw images from a run's newest snapshot, or from a snapshot.")
    sample.add_argument("source", metavar="RUN_OR_SNAPSHOT", type=Path, help="a run folder or a .safetensors file")
    sample.add_argument("--seeds", default="0-7", help="numbers and ranges, such as 0-63,100 (default: 0-7)")
    sample.add_argument(
        "--classes", default="all", help="names, numbers, ranges, or all; every class takes every seed (default: all)"
    )
    sample.add_argument("--truncation", type=float, help="redraw components of z beyond this magnitude, such as 0.8")
    sample.add_argument(
        "--out",
        type=Path,
        default=Path("samples.png"),
        help="a .png (grid), an .npz, or a folder of images (default: samples.png)",
    )
    sample.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")


def _sample(options: argparse.Namespace) -> int:
    from hamgan import snapshot
    from hamgan.sampling.output import write_samples
    from hamgan.training.device import resolve_device

    shot = snapshot.read(snapshot.find(options.source))
    print(
        write_samples(
            shot.generator.to(resolve_device(options.device)),
            shot.class_names,
            seeds=options.seeds,
            classes=options.classes,
            truncation=options.truncation,
            out=options.out,
        )
    )
    return 0


def _add_data(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    data = commands.add_parser("data", help="Build, join, check and look at training files.")
    actions = data.add_subparsers(metavar="ACTION", required=True)
    build = _command(
        actions, "build", _data_build, "Build an HDF5 training file; the same command goes on after a kill."
    )
    build.add_argument("source", help="emoji (embedded), a folder of class folders, an archive or a published file")
    build.add_argument("out", type=Path, help="the .h5 file")
    build.add_argument("--resolution", type=int, required=True, help="height and width, pixels")
    build.add_argument("--resize", default="lanczos", help="lanczos, box, bilinear, tfgan or none (default: lanczos)")
    build.add_argument(
        "--background", type=_color, default="255,255,255", help="R,G,B behind transparent pixels (default: white)"
    )
    build.add_argument("--labels", type=Path, help="a CSV of path,label; or ImageNet's validation ground truth")
    build.add_argument("--classes", type=Path, help="a file with one class name a line")
    build.add_argument("--split", default="train", help="train or test, of published data sets (default: train)")
    build.add_argument("--shard", help="i/n: build the i-th of n parts, counted from 1")
    build.add_argument("--workers", type=int, help="decoding processes (default: one a core)")
    build.add_argument("--skip-bad", action="store_true", help="leave unreadable images out and list them")
    build.add_argument("--overwrite", action="store_true", help="replace a file that holds something else")
    merge = _command(actions, "merge", _data_merge, "Join the parts that --shard built.")
    merge.add_argument("parts", type=Path, nargs="+", help="all parts, in any order")
    merge.add_argument("--out", type=Path, required=True, help="the joined .h5 file")
    merge.add_argument("--copy", action="store_true", help="copy the pixels, instead of referring to the parts")
    merge.add_argument("--overwrite", action="store_true", help="replace a file that holds something else")
    info = _command(actions, "info", _data_info, "Print what a training file holds.")
    info.add_argument("file", type=Path)
    verify = _command(actions, "verify", _data_verify, "Check every block of a training file against its checksum.")
    verify.add_argument("file", type=Path)
    show = _command(actions, "show", _data_show, "Draw a labelled contact sheet of a training file.")
    show.add_argument("file", type=Path)
    show.add_argument("out", type=Path, nargs="?", default=Path("contact-sheet.png"), help="the .png to write")
    bench = _command(actions, "bench", _data_bench, "Measure how fast a training file can be read, and what limits it.")
    bench.add_argument("file", type=Path)
    bench.add_argument("--batch-size", type=int, default=256, help="images a batch (default: 256)")


def _color(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) <= 255 for part in parts):
        raise argparse.ArgumentTypeError(f"'{text}' is not R,G,B with each 0..255")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _data_build(options: argparse.Namespace) -> int:
    from hamgan.data.build import build

    build(
        options.source,
        options.out,
        resolution=options.resolution,
        resize=options.resize,
        background=options.background,
        labels=options.labels,
        classes=options.classes,
        split=options.split,
        shard=options.shard,
        workers=options.workers,
        skip_bad=options.skip_bad,
        overwrite=options.overwrite,
    )
    return 0


def _data_merge(options: argparse.Namespace) -> int:
    from hamgan.data.merge import merge

    merge(options.parts, options.out, copy=options.copy, overwrite=options.overwrite)
    return 0


def _data_info(options: argparse.Namespace) -> int:
    from hamgan.data.info import info_text

    print(info_text(options.file))
    return 0


def _data_verify(options: argparse.Namespace) -> int:
    from hamgan.data.verify import verify

    verify(options.file)
    return 0


def _data_show(options: argparse.Namespace) -> int:
    from hamgan.data.show import contact_sheet

    contact_sheet(options.file, options.out)
    return 0


def _data_bench(options: argparse.Namespace) -> int:
    from hamgan.data.bench import bench

    bench(options.file, batch_size=options.batch_size)
    return 0


def _add_eval(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _command(commands, "eval", _eval, "Measure a run's newest snapshot, a snapshot, or images.")
    parser.add_argument(
        "source", metavar="RUN_OR_SNAPSHOT", type=Path, nargs="?", help="a run folder or a .safetensors"
    )
    parser.add_argument("--images", type=Path, help="a folder of images instead")
    parser.add_argument("--npz", type=Path, help="an .npz of images, arr_0 (N, H, W, 3), instead")
    parser.add_argument("--data", type=Path, help="the training file to compare with (default: the run's)")
    parser.add_argument("--reference", type=Path, help="stored statistics to compare with, instead of a training file")
    parser.add_argument("--protocol", default="embedded", help="embedded, biggan or hamgan (default: embedded)")
    parser.add_argument("--extractor", help="inception, efficientnet_lite0, dinov2 or clip, outside any protocol")
    parser.add_argument("--input", help="that extractor's input pipeline, such as pytorch-fid (default: its own)")
    parser.add_argument("--num-images", type=int, help="generated images (default: the protocol's)")
    parser.add_argument(
        "--labels", choices=("uniform", "data"), default="uniform", help="their classes (default: uniform)"
    )
    parser.add_argument("--truncation", type=float, help="redraw components of z beyond this magnitude")
    parser.add_argument("--weights", type=Path, help="the extractor's weights, where they are not found by themselves")
    parser.add_argument("--out", type=Path, help="folder of the card (default: beside the snapshot, or ./eval)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")


def _eval(options: argparse.Namespace) -> int:
    if sum(value is not None for value in (options.source, options.images, options.npz)) != 1:
        raise ValueError("eval needs exactly one of RUN_OR_SNAPSHOT, --images DIR and --npz FILE")
    from hamgan import dist
    from hamgan.evaluation import EvaluationPlan, run_evaluation
    from hamgan.training.device import resolve_device

    device = resolve_device(options.device)
    dist.init(device)
    plan = EvaluationPlan(
        protocol=options.protocol,
        extractor=options.extractor,
        input_protocol=options.input,
        num_images=options.num_images,
        labels=options.labels,
        truncation=options.truncation,
        weights=options.weights,
        device=device,
    )
    card = run_evaluation(
        plan,
        source=options.source,
        images=options.images,
        npz=options.npz,
        data=options.data,
        statistics=options.reference,
        out=options.out,
    )
    dist.print0(card)
    dist.shutdown()
    return 0


def _add_stats(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    stats = commands.add_parser("stats", help="Build, look at and check stored statistics of real images.")
    actions = stats.add_subparsers(metavar="ACTION", required=True)
    build = _command(actions, "build", _stats_build, "Store the statistics of a training file or a folder of images.")
    build.add_argument(
        "images", metavar="DATA", type=Path, help="an .h5 training file, or a folder, walked recursively"
    )
    build.add_argument("out", type=Path, help="the .npz")
    build.add_argument("--extractor", default="inception", help="inception, efficientnet_lite0, dinov2 or clip")
    build.add_argument("--protocol", help="input pipeline of the extractor (default: its own)")
    build.add_argument("--weights", type=Path, help="local weights of the extractor")
    build.add_argument(
        "--dataset", help="name kept with the statistics, equal for parts to be merged (default: the file's)"
    )
    build.add_argument("--split", help="train, validation, ...: kept with the statistics")
    build.add_argument("--resolution", type=int, help="cut and resize a folder's images to this side, pixels")
    build.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")
    merge = _command(actions, "merge", _stats_merge, "Join statistics of parts of a data set, exactly.")
    merge.add_argument("parts", type=Path, nargs="+", help="the .npz of each part")
    merge.add_argument("--out", type=Path, required=True, help="the joined .npz")
    inspect = _command(actions, "inspect", _stats_inspect, "Print what stored statistics are of.")
    inspect.add_argument("file", type=Path)
    check = _command(actions, "check", _stats_check, "Check stored statistics for consistency.")
    check.add_argument("file", type=Path)
    check.add_argument("--resolution", type=int, help="that they must be of, pixels")
    check.add_argument("--dataset", help="that they must be of")


def _stats_build(options: argparse.Namespace) -> int:
    from hamgan import dist
    from hamgan.evaluation import build_reference
    from hamgan.training.device import resolve_device

    device = resolve_device(options.device)
    dist.init(device)
    line = build_reference(
        options.images,
        options.out,
        extractor=options.extractor,
        protocol=options.protocol,
        weights=options.weights,
        dataset=options.dataset,
        split=options.split,
        resolution=options.resolution,
        device=device,
    )
    dist.print0(line)
    dist.shutdown()
    return 0


def _stats_merge(options: argparse.Namespace) -> int:
    from hamgan.metrics import merge_statistics

    merge_statistics(options.parts, options.out)
    print(f"{options.out}: joined from {len(options.parts)} files")
    return 0


def _stats_inspect(options: argparse.Namespace) -> int:
    from hamgan.metrics import inspect_statistics

    print(inspect_statistics(options.file), end="")
    return 0


def _stats_check(options: argparse.Namespace) -> int:
    from hamgan.metrics import check_statistics

    warnings = check_statistics(options.file, resolution=options.resolution, dataset=options.dataset)
    print("\n".join([f"warning: {line}" for line in warnings] or [f"{options.file}: consistent"]))
    return 0


def _add_import(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "import",
        help="Turn another framework's generator into a snapshot.",
        description="Turn another framework's generator into a snapshot.",
    )
    actions = parser.add_subparsers(metavar="FRAMEWORK", required=True)
    biggan = _command(actions, "biggan-pytorch", _import_biggan, "Import BigGAN-PyTorch's G.pth or G_ema.pth.")
    biggan.add_argument("weights", type=Path, help="the state dict")
    biggan.add_argument("out", type=Path, help="the .safetensors snapshot")
    biggan.add_argument("--batch-norm-eps", type=float, default=1e-5, help="the run's --BN_eps (default: 1e-5)")
    biggan.add_argument("--spectral-norm-eps", type=float, default=1e-6, help="the run's --SN_eps (default: 1e-6)")
    tf = _command(actions, "tf-hamgan", _import_tf_hamgan, "Import the official HamGAN's generator.")
    tf.add_argument("weights", type=Path, help="an .npz of variables, or a checkpoint's prefix (needs TensorFlow)")
    tf.add_argument("out", type=Path, help="the .safetensors snapshot")
    tf.add_argument("--ham", choices=("nmf", "cd", "vq"), default="nmf", help="the decomposition (default: nmf)")
    tf.add_argument("--steps", type=int, default=6, help="its steps (default: 6)")
    tf.add_argument("--rank", type=int, default=32, help="its number of bases (default: 32)")
    tf.add_argument("--sections", type=int, default=1, help="its number of sections (default: 1)")


def _import_biggan(options: argparse.Namespace) -> int:
    from hamgan.interop.biggan_pytorch import load_generator
    from hamgan.snapshot import write_imported

    G = load_generator(
        options.weights, batch_norm_eps=options.batch_norm_eps, spectral_norm_eps=options.spectral_norm_eps
    )
    print(write_imported(options.out, G, options.weights))
    return 0


def _import_tf_hamgan(options: argparse.Namespace) -> int:
    from hamgan.interop.tf_hamgan import load_generator
    from hamgan.snapshot import write_imported

    G = load_generator(
        options.weights, ham=options.ham, steps=options.steps, rank=options.rank, sections=options.sections
    )
    print(write_imported(options.out, G, options.weights))
    return 0

"""`hamgan import`."""

import argparse
from pathlib import Path

from hamgan.cli.command import Commands, command


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "import",
        help="Turn another framework's generator into a snapshot.",
        description="Turn another framework's generator into a snapshot.",
    )
    actions = parser.add_subparsers(metavar="FRAMEWORK", required=True)
    biggan = command(actions, "biggan-pytorch", _import_biggan, "Import BigGAN-PyTorch's G.pth or G_ema.pth.")
    biggan.add_argument("weights", type=Path, help="the state dict")
    biggan.add_argument("out", type=Path, help="the .safetensors snapshot")
    biggan.add_argument("--batch-norm-eps", type=float, default=1e-5, help="the run's --BN_eps (default: 1e-5)")
    biggan.add_argument("--spectral-norm-eps", type=float, default=1e-6, help="the run's --SN_eps (default: 1e-6)")
    tf = command(actions, "tf-hamgan", _import_tf_hamgan, "Import the official HamGAN's generator.")
    tf.add_argument("weights", type=Path, help="an .npz of variables, or a checkpoint's prefix (needs TensorFlow)")
    tf.add_argument("out", type=Path, help="the .safetensors snapshot")
    tf.add_argument("--ham", choices=("nmf", "cd", "vq"), default="nmf", help="the decomposition (default: nmf)")
    tf.add_argument("--steps", type=int, default=6, help="its steps (default: 6)")
    tf.add_argument("--rank", type=int, default=32, help="its number of bases (default: 32)")
    tf.add_argument("--sections", type=int, default=1, help="its number of sections (default: 1)")


def _import_biggan(options: argparse.Namespace) -> int:
    from hamgan.interop.biggan_pytorch import load_generator
    from hamgan.model_card import write_imported

    G = load_generator(
        options.weights, batch_norm_eps=options.batch_norm_eps, spectral_norm_eps=options.spectral_norm_eps
    )
    print(write_imported(options.out, G, options.weights))
    return 0


def _import_tf_hamgan(options: argparse.Namespace) -> int:
    from hamgan.interop.tf_hamgan import load_generator
    from hamgan.model_card import write_imported

    G = load_generator(
        options.weights, ham=options.ham, steps=options.steps, rank=options.rank, sections=options.sections
    )
    print(write_imported(options.out, G, options.weights))
    return 0

"""BigGAN-PyTorch's `G.pth`, `G_ema.pth` and `D.pth` into our networks; every size is read from the file.

Source of names and conventions: the public BigGAN-PyTorch repository (Brock et al. 2019).
"""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from hamgan.checkpoint import load_tensors
from hamgan.interop.tensors import assign, channel_unit, naming_the_file, read_shape
from hamgan.models.arch import DISCRIMINATOR_MULTIPLIERS, GENERATOR_MULTIPLIERS, NUM_DOWNSAMPLING
from hamgan.models.discriminator import Discriminator, DiscriminatorConfig
from hamgan.models.generator import INITIAL_RESOLUTION, Generator, GeneratorConfig
from hamgan.nn.spectral_norm import SpectralNormConfig


@naming_the_file
def load_generator(path: str | Path, *, batch_norm_eps: float = 1e-5, spectral_norm_eps: float = 1e-6) -> Generator:
    """Load a generator: any width, resolution 32 to 256, number of classes, with or without hierarchy, shared embedding,
    attention, and spectral norm.

    Args:
        path: The state dict as BigGAN-PyTorch saves it; nothing in it is executed.
        batch_norm_eps: The run's `--BN_eps`, which a file does not tell.
        spectral_norm_eps: The run's `--SN_eps`, likewise.

    Returns:
        The generator in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a BigGAN-PyTorch generator, or one that this family cannot hold.
    """
    state = _read(path)
    if "output_layer.2.weight" not in state:
        raise ValueError(f"{path}: not a BigGAN-PyTorch generator (it has no output_layer.2.weight)")
    num_blocks = _count_blocks(state)
    resolution = INITIAL_RESOLUTION * 2**num_blocks
    if resolution not in GENERATOR_MULTIPLIERS:
        raise ValueError(
            f"{path}: a generator of {num_blocks} blocks draws {resolution}x{resolution}; allowed are 32 to 256"
        )
    widths = [read_shape(state, "blocks.0.0.conv1.weight", path)[1]]
    widths += [read_shape(state, f"blocks.{index}.0.conv1.weight", path)[0] for index in range(num_blocks)]
    channels, multipliers = channel_unit(widths, GENERATOR_MULTIPLIERS[resolution])
    chunk = read_shape(state, "linear.weight", path)[1]
    gain = read_shape(state, "blocks.0.0.bn1.gain.weight", path)
    shared = "shared.weight" in state
    num_classes, embedding_dim = read_shape(state, "shared.weight", path) if shared else (gain[0], 128)
    hierarchical = shared and gain[1] > embedding_dim
    context = [8 * 2**index for index in range(num_blocks) if f"blocks.{index}.1.gamma" in state]
    config = GeneratorConfig(
        resolution=resolution,
        channels=channels,
        channel_multipliers=multipliers,
        num_classes=num_classes,
        z_dim=chunk * (num_blocks + 1) if hierarchical else chunk,
        conditioning="shared" if shared else "per_class",
        embedding_dim=embedding_dim,
        hierarchical=hierarchical,
        context="attention" if context else "none",
        context_resolutions=tuple(context),
        spectral_norm=_spectral_norm(state, spectral_norm_eps),
        batch_norm_eps=batch_norm_eps,
    )
    return assign(Generator(config), _rename_generator(state, shared), path)


@naming_the_file
def load_discriminator(path: str | Path, *, spectral_norm_eps: float = 1e-6) -> Discriminator:
    """Load a discriminator; arguments, result and errors as in `load_generator`."""
    state = _read(path)
    if "embed.weight" not in state:
        raise ValueError(f"{path}: not a BigGAN-PyTorch discriminator (it has no embed.weight)")
    num_blocks = _count_blocks(state)
    resolutions = {len(multipliers): resolution for resolution, multipliers in DISCRIMINATOR_MULTIPLIERS.items()}
    if num_blocks not in resolutions:
        raise ValueError(f"{path}: a discriminator of {num_blocks} blocks; those for 32 to 256 pixels have 4 to 7")
    resolution = resolutions[num_blocks]
    widths = [read_shape(state, f"blocks.{index}.0.conv2.weight", path)[0] for index in range(num_blocks)]
    hidden = [read_shape(state, f"blocks.{index}.0.conv1.weight", path)[0] for index in range(num_blocks)]
    channels, multipliers = channel_unit(widths, DISCRIMINATOR_MULTIPLIERS[resolution])
    context = [
        resolution // 2 ** min(index + 1, NUM_DOWNSAMPLING[resolution])
        for index in range(num_blocks)
        if f"blocks.{index}.1.gamma" in state
    ]
    config = DiscriminatorConfig(
        resolution=resolution,  # type: ignore[arg-type]
        channels=channels,
        channel_multipliers=multipliers,
        num_classes=read_shape(state, "embed.weight", path)[0],
        wide=hidden == widths,
        context="attention" if context else "none",
        context_resolutions=tuple(dict.fromkeys(context)),
        spectral_norm=_spectral_norm(state, spectral_norm_eps),
    )
    return assign(Discriminator(config), _rename_discriminator(state), path)


def _read(path: str | Path) -> dict[str, Tensor]:
    loaded = load_tensors(Path(path))
    return {str(key).removeprefix("module."): value for key, value in loaded.items() if isinstance(value, Tensor)}


def _count_blocks(state: Mapping[str, Tensor]) -> int:
    indices = [int(match[1]) for match in map(re.compile(r"blocks\.(\d+)\.0\.conv1\.weight$").match, state) if match]
    return max(indices, default=-1) + 1


def _spectral_norm(state: Mapping[str, Tensor], eps: float) -> SpectralNormConfig:
    return SpectralNormConfig(mode="equality" if "linear.u0" in state else "none", side="output", eps=eps)


BLOCK_PARTS = {"conv_sc": "shortcut", "bn1": "norm1", "bn2": "norm2"}
"""Sub-modules whose names differ; conv1 and conv2 are the same."""


def _rename_generator(state: Mapping[str, Tensor], shared: bool) -> dict[str, Tensor]:
    renamed = _rename_common(state)
    renamed = {
        name.replace("shared.", "embedding.", 1) if name.startswith("shared.") else name: t
        for name, t in renamed.items()
    }
    if not shared:
        # Their tables hold gain - 1.
        renamed = {name: t + 1 if re.search(r"norm[12]\.gain\.weight$", name) else t for name, t in renamed.items()}
    return renamed


def _rename_discriminator(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {re.sub(r"^embed\.", "embedding.", name): tensor for name, tensor in _rename_common(state).items()}


def _rename_common(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename blocks, norms, attention and u vectors; drop what only their training used."""
    renamed = {}
    for old, tensor in state.items():
        if re.search(r"\.(sv\d+|u[1-9]\d*|num_batches_tracked|accumulation_counter)$", old):
            continue
        name = re.sub(r"^blocks\.(\d+)\.1\.", r"contexts.\1.", old).replace(".gamma", ".gate")
        name = re.sub(r"^blocks\.(\d+)\.0\.", r"blocks.\1.", name)
        name = re.sub(r"^(blocks\.\d+)\.(\w+)\.", lambda m: f"{m[1]}.{BLOCK_PARTS.get(m[2], m[2])}.", name)
        name = name.replace("output_layer.0.", "output_norm.").replace("output_layer.2.", "output_conv.")
        if match := re.search(r"\.(?:bn\.)?(?:stored|running)_(mean|var)$", name):
            name = f"{name[: match.start()]}.statistics.running_{match[1]}"
            tensor = _standing(state, old, tensor)
        if name.endswith(".u0"):
            name, tensor = f"{name.removesuffix('u0')}spectral_norm.u", tensor.flatten()
        renamed[name] = tensor
    return renamed


def _standing(state: Mapping[str, Tensor], key: str, tensor: Tensor) -> Tensor:
    """Divide sums by their count, where the file's batch norm had accumulated standing statistics."""
    counter = state.get(f"{key.rsplit('.', 1)[0]}.accumulation_counter")
    return tensor if counter is None or not float(counter) > 0 else tensor / counter

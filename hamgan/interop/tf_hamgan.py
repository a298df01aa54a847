"""The official HamGAN's TensorFlow variables into our networks; every size is read from the file.

Source of names and conventions: the public HamGAN code (Geng et al. 2021), which is TF-GAN's SAGAN with Hamburgers.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hamgan.interop.tensors import assign, channel_unit, naming_the_file, read_shape
from hamgan.models.arch import DISCRIMINATOR_MULTIPLIERS, GENERATOR_MULTIPLIERS
from hamgan.models.discriminator import Discriminator, DiscriminatorConfig
from hamgan.models.generator import INITIAL_RESOLUTION, Generator, GeneratorConfig
from hamgan.nn.hamburger import Hamburger, HamburgerConfig
from hamgan.nn.spectral_norm import SpectralNormConfig

HAM_RESOLUTION = 32
"""Where the official code puts both networks' Hamburgers, pixels."""

Ham = Literal["nmf", "cd", "vq"]
SPECTRAL_NORM = SpectralNormConfig(mode="inequality", side="input", eps=1e-6)
"""tf.math.l2_normalize's epsilon is 1e-12 on the squared norm."""


@naming_the_file
def load_generator(
    path: str | Path,
    *,
    ham: Ham = "nmf",
    steps: int = 6,
    rank: int = 32,
    sections: int = 1,
    bases: np.ndarray | Tensor | None = None,
) -> Generator:
    """Load a generator.

    Args:
        path: An `.npz` of variables by name, or the prefix of a TensorFlow checkpoint (needs the extra `tensorflow`).
        ham: The decomposition, which a file does not tell. The official code has nmf and cd; vq is ours.
        steps: Its steps K, likewise.
        rank: Its number of bases R, likewise; unused where `bases` are given.
        sections: Its number of sections S, likewise.
        bases: Initial bases, (S, D, R) or one for each sample, (B * S, D, R), stored in place of our seeded ones.

    Returns:
        The generator in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no HamGAN generator, or one that this family cannot hold.
    """
    variables = read_variables(path, "generator")
    num_blocks = _count(variables, r"g_block(\d+)/snconv1")
    resolution = INITIAL_RESOLUTION * 2**num_blocks
    if resolution not in GENERATOR_MULTIPLIERS:
        raise ValueError(f"{path}: a generator of {num_blocks} blocks; those for 32 to 256 pixels have 3 to 6")
    tensors = _dense(variables, "g_snh0", "linear", path, pixels=INITIAL_RESOLUTION**2)
    for index in range(num_blocks):
        theirs, ours = f"g_block{index + 1}", f"blocks.{index}"
        for conv, name in {"snconv1": "conv1", "snconv2": "conv2", "snconv3": "shortcut"}.items():
            tensors |= _conv(variables, f"{theirs}/{conv}", f"{ours}.{name}", path)
        tensors |= _conditional_norm(variables, f"{theirs}/cbn_0", f"{ours}.norm1", path)
        tensors |= _conditional_norm(variables, f"{theirs}/cbn_1", f"{ours}.norm2", path)
    tensors |= _output_norm(variables, path) | _conv(variables, "g_snconv_last", "output_conv", path)
    context_index = _ham_block([8 * 2**index for index in range(num_blocks)])
    burger = _burger(variables, "g_ops", f"contexts.{context_index}", path)
    widths = [tensors["blocks.0.conv1.weight"].shape[1]]
    widths += [tensors[f"blocks.{index}.conv1.weight"].shape[0] for index in range(num_blocks)]
    channels, multipliers = channel_unit(widths, GENERATOR_MULTIPLIERS[resolution])
    config = GeneratorConfig(
        resolution=resolution,
        channels=channels,
        channel_multipliers=multipliers,
        num_classes=tensors["blocks.0.norm1.gain.weight"].shape[0],
        z_dim=tensors["linear.weight"].shape[1],
        conditioning="per_class",
        hierarchical=False,
        context="ham" if burger else "none",
        context_resolutions=(HAM_RESOLUTION,) if burger else (),
        ham=_ham_config(burger, ham, steps, rank, sections, bases, path),
        spectral_norm=SPECTRAL_NORM,
        batch_norm_eps=1e-3,
        batch_norm_momentum=1e-3,
        weight_init="xavier_uniform",
    )
    network = assign(Generator(config), tensors | burger, path)
    _store_bases(network.contexts, bases)
    return network


@naming_the_file
def load_discriminator(
    path: str | Path,
    *,
    ham: Ham = "nmf",
    steps: int = 6,
    rank: int = 16,
    sections: int = 1,
    bases: np.ndarray | Tensor | None = None,
) -> Discriminator:
    """Load a discriminator; arguments, result and errors as in `load_generator`."""
    variables = read_variables(path, "discriminator")
    scopes = ["d_optimized_block1"]
    while any(name.startswith(f"d_block{len(scopes) + 1}/") for name in variables):
        scopes.append(f"d_block{len(scopes) + 1}")
    resolutions = {len(multipliers): resolution for resolution, multipliers in DISCRIMINATOR_MULTIPLIERS.items()}
    if len(scopes) not in resolutions:
        raise ValueError(f"{path}: a discriminator of {len(scopes)} blocks; those for 32 to 256 pixels have 4 to 7")
    resolution = resolutions[len(scopes)]
    tensors = _dense(variables, "d_sn_linear", "linear", path)
    for index, scope in enumerate(scopes):
        for conv, name in {"sn_conv1": "conv1", "sn_conv2": "conv2", "sn_conv3": "shortcut"}.items():
            if name == "shortcut" and f"{scope}/{conv}/{conv}/kernel" not in variables:
                continue
            tensors |= _conv(variables, f"{scope}/{conv}", f"blocks.{index}.{name}", path)
    read_shape(variables, "d_embedding/embedding_map", path)
    tensors["embedding.weight"] = variables["d_embedding/embedding_map"]
    tensors["embedding.spectral_norm.u"] = _u_vector(variables, "d_embedding", path).flatten()
    context_index = _ham_block([resolution // 2 ** (index + 1) for index in range(len(scopes) - 1)])
    burger = _burger(variables, "d_ops", f"contexts.{context_index}", path)
    widths = [tensors[f"blocks.{index}.conv2.weight"].shape[0] for index in range(len(scopes))]
    channels, multipliers = channel_unit(widths, DISCRIMINATOR_MULTIPLIERS[resolution])
    config = DiscriminatorConfig(
        resolution=resolution,  # type: ignore[arg-type]
        channels=channels,
        channel_multipliers=multipliers,
        num_classes=tensors["embedding.weight"].shape[0],
        context="ham" if burger else "none",
        context_resolutions=(HAM_RESOLUTION,) if burger else (),
        ham=_ham_config(burger, ham, steps, rank, sections, bases, path),
        spectral_norm=SPECTRAL_NORM,
        weight_init="xavier_uniform",
    )
    network = assign(Discriminator(config), tensors | burger, path)
    _store_bases(network.contexts, bases)
    return network


def read_variables(path: str | Path, scope: str) -> dict[str, Tensor]:
    """Read the float32 variables under `generator/` or `discriminator/`, by their names below it.

    Raises:
        FileNotFoundError: If there is neither such an `.npz` nor such a checkpoint.
        ValueError: If the file is damaged, holds objects, has nothing under the scope, or TensorFlow is not installed.
    """
    arrays = _read_npz(Path(path)) if Path(path).suffix == ".npz" else _read_checkpoint(path)
    variables = {
        name.removeprefix(f"{scope}/").removesuffix(":0"): torch.from_numpy(np.array(array, dtype=np.float32))
        for name, array in arrays.items()
        if name.startswith(f"{scope}/") and array.dtype.kind == "f"
    }
    if not variables:
        raise ValueError(f"{path}: no variable under '{scope}/'")
    return variables


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # numpy and zipfile raise a dozen kinds for damaged files
        raise ValueError(f"{path}: damaged, or not an .npz of plain arrays ({error})") from None


def _read_checkpoint(prefix: str | Path) -> dict[str, np.ndarray]:
    if not Path(f"{prefix}.index").is_file():
        raise FileNotFoundError(
            f"{prefix}: neither an .npz nor the prefix of a TensorFlow checkpoint ({prefix}.index is missing)"
        )
    try:
        import tensorflow as tf
    except ImportError:
        raise ValueError(
            f"{prefix}: reading a TensorFlow checkpoint needs TensorFlow: pip install 'hamgan[tensorflow]'"
        ) from None
    reader = tf.train.load_checkpoint(str(prefix))
    return {name: np.asarray(reader.get_tensor(name)) for name in reader.get_variable_to_shape_map()}


def _count(variables: Mapping[str, Tensor], pattern: str) -> int:
    return max((int(match[1]) for match in map(re.compile(pattern).match, variables) if match), default=0)


def _ham_block(resolutions: list[int]) -> int:
    return resolutions.index(HAM_RESOLUTION) if HAM_RESOLUTION in resolutions else 0


def _u_vector(variables: Mapping[str, Tensor], scope: str, path: str | Path) -> Tensor:
    """Find a scope's vector; the graph repeats the weight's full name inside the vector's."""
    for name, tensor in variables.items():
        if name.startswith(f"{scope}/") and name.endswith("spectral_norm_u"):
            return tensor
    raise ValueError(f"{path}: no spectral_norm_u under '{scope}/'")


def _conv_tensors(kernel: Tensor, u: Tensor, ours: str) -> dict[str, Tensor]:
    """(kh, kw, c_in, c_out) and u over (kh, kw, c_in) into torch's order."""
    height, width, num_in, _ = kernel.shape
    return {
        f"{ours}.weight": kernel.permute(3, 2, 0, 1).contiguous(),
        f"{ours}.spectral_norm.u": u.reshape(height, width, num_in).permute(2, 0, 1).flatten(),
    }


def _conv(variables: Mapping[str, Tensor], scope: str, ours: str, path: str | Path) -> dict[str, Tensor]:
    theirs = f"{scope}/{scope.rsplit('/', 1)[-1]}"
    read_shape(variables, f"{theirs}/kernel", path)
    read_shape(variables, f"{theirs}/bias", path)
    tensors = _conv_tensors(variables[f"{theirs}/kernel"], _u_vector(variables, scope, path), ours)
    return tensors | {f"{ours}.bias": variables[f"{theirs}/bias"]}


def _dense(
    variables: Mapping[str, Tensor], scope: str, ours: str, path: str | Path, pixels: int = 1
) -> dict[str, Tensor]:
    """(in, out) to (out, in), with outputs in the order (C, pixels) where theirs is (pixels, C)."""
    num_in, num_out = read_shape(variables, f"{scope}/dense/kernel", path)
    kernel = variables[f"{scope}/dense/kernel"].t().reshape(pixels, num_out // pixels, num_in)
    bias = variables[f"{scope}/dense/bias"].reshape(pixels, -1)
    return {
        f"{ours}.weight": kernel.transpose(0, 1).reshape(num_out, num_in),
        f"{ours}.bias": bias.t().flatten(),
        f"{ours}.spectral_norm.u": _u_vector(variables, scope, path).flatten(),
    }


def _statistics(variables: Mapping[str, Tensor], scope: str, ours: str, path: str | Path) -> dict[str, Tensor]:
    read_shape(variables, f"{scope}/moving_mean", path)
    return {
        f"{ours}.statistics.running_mean": variables[f"{scope}/moving_mean"],
        f"{ours}.statistics.running_var": variables[f"{scope}/moving_variance"],
    }


def _conditional_norm(variables: Mapping[str, Tensor], scope: str, ours: str, path: str | Path) -> dict[str, Tensor]:
    num_classes = read_shape(variables, f"{scope}/gamma", path)[0]
    return _statistics(variables, scope, ours, path) | {
        f"{ours}.gain.weight": variables[f"{scope}/gamma"].reshape(num_classes, -1),
        f"{ours}.bias.weight": variables[f"{scope}/beta"].reshape(num_classes, -1),
    }


def _output_norm(variables: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    return _statistics(variables, "g_bn", "output_norm", path) | {
        "output_norm.gain": variables["g_bn/gamma"].flatten(),
        "output_norm.bias": variables["g_bn/beta"].flatten(),
    }


def _burger(variables: Mapping[str, Tensor], scope: str, ours: str, path: str | Path) -> dict[str, Tensor]:
    """Return the Hamburger's tensors by our names; empty where the network has none."""
    if f"{scope}/sn_lower_bread/weights" not in variables:
        return {}
    tensors = {f"{ours}.gate": variables[f"{scope}/sigma_ratio"]}
    for part in ("lower_bread", "cheese", "upper_bread"):
        if f"{scope}/sn_{part}/weights" in variables:
            kernel = variables[f"{scope}/sn_{part}/weights"]
            tensors |= _conv_tensors(kernel, _u_vector(variables, f"{scope}/sn_{part}", path), f"{ours}.{part}")
        if f"{scope}/{part}_bn/gamma" in variables:
            tensors |= _conditional_norm(variables, f"{scope}/{part}_bn", f"{ours}.{part}_norm", path)
    return tensors


def _ham_config(
    burger: Mapping[str, Tensor],
    ham: Ham,
    steps: int,
    rank: int,
    sections: int,
    bases: np.ndarray | Tensor | None,
    path: str | Path,
) -> HamburgerConfig:
    kinds: dict[str, Literal["NMF", "CD", "VQ"]] = {"nmf": "NMF", "cd": "CD", "vq": "VQ"}
    if ham not in kinds:
        raise ValueError(f"ham is {ham!r}; allowed are {', '.join(kinds)}")
    config = HamburgerConfig(
        kind=kinds[ham],
        rank=rank if bases is None else bases.shape[-1],
        num_sections=sections,
        train_steps=steps,
        eval_steps=steps,
        normalize_bases=ham != "nmf",
        beta=0.01,
    )
    if not burger:
        return config
    lower = next(tensor for name, tensor in burger.items() if name.endswith("lower_bread.weight"))
    latent, channels = lower.shape[:2]
    if latent % sections:
        raise ValueError(f"{path}: its lower bread has {latent} channels; {sections} sections do not divide them")
    return replace(
        config,
        version="V2" if any(".cheese." in name for name in burger) else "V1",
        latent_channels=0 if latent == channels * sections else latent // sections,
    )


def _store_bases(contexts: torch.nn.ModuleList, bases: np.ndarray | Tensor | None) -> None:
    if bases is None:
        return
    for context in contexts:
        if isinstance(context, Hamburger):
            context.store_bases(torch.as_tensor(bases))

"""Public weights: mmcv's files of HamNet and Light-Ham as they were released, ImageNet backbones, torchvision's ResNet.

What a file's keys and shapes tell is read from them; what they do not (steps, bases, strides) is an argument.
"""

import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hamgan.checkpoint import load_tensors
from hamgan.nn.decomposition import Gradient
from hamgan.segmentation.model import NUM_STAGES, HeadName, SegmentationConfig, Segmentor
from hamgan.segmentation.published import published_rank
from hamgan.segmentation.resnet import PUBLISHED_RESNETS
from hamgan.segmentation.van import PUBLISHED_VANS

Weights = Mapping[str, Tensor]

STORED_BASES = "head.hamburger.ham.bases"
"""The one tensor of a segmentor that public files lack: they draw bases in evaluation too."""
IGNORED_SUFFIX = ".num_batches_tracked"
"""Torch's batch norms count their batches; nothing here depends on it."""


def load(
    path: str | Path,
    bases: Tensor | NDArray[np.floating[Any]] | None = None,
    *,
    rank: int | None = None,
    train_steps: int = 6,
    eval_steps: int = 7,
    strides: Sequence[int] | None = None,
    gradient: Gradient = "unrolled",
    align_corners: bool = False,
    seed: int = 0,
) -> Segmentor:
    """Load a public segmentor: Light-Ham, HamNet or HamNet+ with a VAN or a ResNet of any size.

    Args:
        path: A file as mmcv writes it, `state_dict` beside `meta`, or a bare state dict. No code in it is run.
        bases: What evaluation starts the Hamburger from, (1, D, R), or (B, D, R) to serve only batches of B images. None:
            drawn once, from `seed`.
        rank: Number of bases R; None: that of `bases`, else the published one of the system (64 for unknown ones).
        train_steps: The Hamburger's steps in training.
        eval_steps: The Hamburger's steps in evaluation.
        strides: Of the backbone's four stages; None: 4,2,2,2 (VAN), 1,2,1,1 after the stem (ResNet). A HamNet with a VAN at
            output stride 8 has 4,2,1,1.
        gradient: unrolled, as published, or one_step.
        align_corners: Whether bilinear resizing keeps corner pixels; false as published.
        seed: Of the drawn bases.

    Returns:
        The segmentor on the CPU, in evaluation mode, its weights frozen; `requires_grad_(True).train()` to train it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or holds another backbone or head, or if tensors are missing, left over or of a shape
            that does not fit the others; names the first.
    """
    path = Path(path)
    weights = _weights_of(path)
    if bases is not None:
        bases = torch.as_tensor(bases)
        if bases.dim() != 3:
            raise ValueError(f"bases have shape {tuple(bases.shape)}; (1 or B, D, R) is expected")
        if rank is not None and rank != bases.shape[2]:
            raise ValueError(f"rank is {rank}; the bases given have {bases.shape[2]}")
        rank = bases.shape[2]
    sizes = _read_sizes(weights, path)
    sizes |= {"backbone_strides": tuple(strides or ()), "train_steps": train_steps, "eval_steps": eval_steps}
    sizes |= {"gradient": gradient, "align_corners": align_corners, "seed": seed}
    try:
        config = SegmentationConfig(**sizes)
        config = SegmentationConfig(**sizes, rank=published_rank(config) if rank is None else rank)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    with torch.device("meta"):
        model = Segmentor(config)
    model.load_state_dict(_renamed(model, weights, path), assign=True)
    if bases is not None:
        assert model.head.hamburger is not None
        model.head.hamburger.store_bases(bases)
    return model.eval().requires_grad_(False)


def load_backbone(model: Segmentor, path: str | Path) -> tuple[str, ...]:
    """Copy a backbone's public weights into a segmentor, in place.

    Args:
        model: The segmentor.
        path: A VAN trained on ImageNet (`van_small_811.pth.tar`), mmcv's ResNet-V1c, torchvision's ResNet, EfficientNet-Lite0,
            or a public segmentor, whose head is passed over.

    Returns:
        Names of the backbone's tensors that the file has nothing for: none for a VAN or EfficientNet; the deep stem, and what
        reads it if it is wider than torchvision's, for torchvision's ResNet.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or holds another backbone; names the first tensor that does not fit.
    """
    path = Path(path)
    weights = _weights_of(path)
    if any(name.startswith("backbone.") for name in weights):
        weights = {name[9:]: tensor for name, tensor in weights.items() if name.startswith("backbone.")}
    own = {
        public_name(f"backbone.{name}", model.config.head).removeprefix("backbone."): tensor
        for name, tensor in model.backbone.state_dict().items()
    }
    absent = [name for name in own if name not in weights]
    torchvision = "conv1.weight" in weights and "layer1.0.conv1.weight" in weights
    if torchvision:
        # Its stem is one 7x7 convolution, whose 64 channels a wider stem's first block does not read.
        absent += [f"layer1.0.{name}.weight" for name in ("conv1", "downsample.0")]
        absent = [name for name in absent if name not in weights or weights[name].shape != own[name].shape]
    not_fitting = [name for name in absent if not (torchvision and name.startswith(("stem.", "layer1.0.")))]
    if not_fitting:
        raise ValueError(f"{path}: is of another backbone than {model.config.backbone}: it has no {not_fitting[0]}")
    known = ("head.", "fc.", "conv1.", "bn1.") if torchvision else ("head.", "fc.", "_conv_head.", "_bn1.", "_fc.")
    for name, tensor in weights.items():
        if name in absent or name.endswith(IGNORED_SUFFIX) or name.startswith(known):
            continue
        if name not in own:
            raise ValueError(f"{path}: is of another backbone than {model.config.backbone}: {name} has no place in it")
        _check_shape(path, name, tensor, own[name])
    with torch.no_grad():
        for name, tensor in own.items():
            if name not in absent:
                tensor.copy_(weights[name])
    return tuple(dict.fromkeys(absent))


def public_state_dict(model: Segmentor) -> dict[str, Tensor]:
    """Return a segmentor's weights under the names of the public files; the stored bases have none and are left out."""
    return {
        public_name(name, model.config.head): tensor
        for name, tensor in model.state_dict().items()
        if name != STORED_BASES
    }


Replacement = str | Callable[[re.Match[str]], str]


def _stage(pattern: str) -> Callable[[re.Match[str]], str]:
    """Number stages from 1."""
    return lambda match: pattern.format(int(match[1]) + 1)


PUBLIC_NAMES: tuple[tuple[str, Replacement], ...] = (
    # VAN
    (r"^backbone\.stages\.(\d+)\.embed\.", _stage("backbone.patch_embed{}.proj.")),
    (r"^backbone\.stages\.(\d+)\.embed_norm\.", _stage("backbone.patch_embed{}.norm.")),
    (r"^backbone\.stages\.(\d+)\.blocks\.", _stage("backbone.block{}.")),
    (r"^backbone\.stages\.(\d+)\.norm\.", _stage("backbone.norm{}.")),
    (r"\.attention\.proj_in\.", ".attn.proj_1."),
    (r"\.attention\.proj_out\.", ".attn.proj_2."),
    (r"\.attention\.local\.", ".attn.spatial_gating_unit.conv0."),
    (r"\.attention\.dilated\.", ".attn.spatial_gating_unit.conv_spatial."),
    (r"\.attention\.pointwise\.", ".attn.spatial_gating_unit.conv1."),
    (r"\.mlp\.depthwise\.", ".mlp.dwconv.dwconv."),
    (r"\.scale(\d)$", r".layer_scale_\1"),
    # ResNet
    (r"^backbone\.stages\.(\d+)\.", _stage("backbone.layer{}.")),
    (r"^backbone\.stem\.(\d+)\.conv\.", lambda match: f"backbone.stem.{3 * int(match[1])}."),
    (r"^backbone\.stem\.(\d+)\.norm\.", lambda match: f"backbone.stem.{3 * int(match[1]) + 1}."),
    # heads
    (r"^auxiliary_head\.conv\.", "auxiliary_head.convs.0."),
    (r"^head\.", "decode_head."),
    (r"_head\.concatenated\.", "_head.conv_cat."),
    (r"_head\.classify\.", "_head.conv_seg."),
    (r"\.lower_bread\.", ".ham_in.conv."),
    (r"\.upper_bread\.", ".ham_out.conv."),
    (r"\.upper_bread_norm\.", ".ham_out.gn."),
    (r"(_head\..*)\.norm\.", r"\1.gn."),
)
"""From our names to the public ones, applied in this order."""


def public_name(name: str, head: HeadName) -> str:
    """Return the public name of a tensor of a segmentor with such a head."""
    if head != "light_ham":  # HamNet's block is no module of its own in the public code
        name = name.replace("head.hamburger.", "head.")
    for pattern, replacement in PUBLIC_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _weights_of(path: Path) -> Weights:
    """Read a state dict, which may lie under `state_dict`, as float32."""
    loaded = load_tensors(path)
    weights = loaded.get("state_dict", loaded)
    if not isinstance(weights, Mapping) or not any(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path}: holds no weights (a dict of tensors, or one under 'state_dict')")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: {reprlib.repr(name)} is a {type(value).__name__}; a name and a tensor are expected"
            )
        if problem := _problem(name, value):
            raise ValueError(f"{path}: {reprlib.repr(name)} {problem}")
    return {name: value.detach().float() if value.is_floating_point() else value for name, value in weights.items()}


def _problem(name: str, value: Tensor) -> str:
    """Say why a tensor cannot be a weight; empty: it can."""
    if value.layout != torch.strided or value.is_meta:
        return "is sparse or has no values; a dense tensor is expected"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"is {tuple(value.shape)} and stores fewer numbers than that"
    if name.endswith(IGNORED_SUFFIX):
        return ""
    if not value.is_floating_point():
        return f"is {value.dtype}; floating point is expected"
    return "" if bool(value.isfinite().all()) else "holds numbers that are not finite"


def _read_sizes(weights: Weights, path: Path) -> dict[str, Any]:
    """Return what the keys and shapes tell of a segmentor's configuration."""
    head = "decode_head."
    if f"{head}hamburger.ham_in.conv.weight" in weights:
        kind, ham_in = "light_ham", f"{head}hamburger.ham_in.conv.weight"
    elif f"{head}ham_in.conv.weight" in weights:
        kind = "ham_net_plus" if f"{head}conv_cat.conv.weight" in weights else "ham_net"
        ham_in = f"{head}ham_in.conv.weight"
    else:
        found = sorted({name.split(".")[1] for name in weights if name.startswith(head) and "." in name[len(head) :]})
        what = f"its decode_head has {', '.join(found[:6])}" if found else "it has no decode_head"
        raise ValueError(f"{path}: is neither Light-Ham nor HamNet, which have decode_head.[hamburger.]ham_in: {what}")

    def channels(name: str, dim: int = 0) -> int:
        return _shape(weights, name, path)[dim]

    squeeze = channels(f"{head}squeeze.conv.weight")
    latent = channels(ham_in)
    sizes: dict[str, Any] = {
        "num_classes": channels(f"{head}conv_seg.weight"),
        "head": kind,
        "squeeze_channels": squeeze,
        "ham_channels": 0 if latent == squeeze else latent,
        "channels": channels(f"{head}align.conv.weight"),
    }
    if any(name.startswith("auxiliary_head.") for name in weights):
        sizes |= {"auxiliary": True, "auxiliary_channels": channels("auxiliary_head.convs.0.conv.weight")}
    return sizes | _read_backbone(weights, path)


def _read_backbone(weights: Weights, path: Path) -> dict[str, Any]:
    """Return what the keys and shapes tell of a backbone."""
    stages = range(1, NUM_STAGES + 1)
    if "backbone.patch_embed1.proj.weight" in weights:
        depths = tuple(_depth(weights, f"backbone.block{stage}.", path) for stage in stages)
        dims = tuple(_shape(weights, f"backbone.patch_embed{stage}.proj.weight", path)[0] for stage in stages)
        hidden = [_shape(weights, f"backbone.block{stage}.0.mlp.fc1.weight", path)[0] for stage in stages]
        for stage, (width, dim) in enumerate(zip(hidden, dims, strict=True), start=1):
            if width % dim:
                raise ValueError(
                    f"{path}: backbone.block{stage}.0.mlp.fc1.weight has {width} outputs; a multiple of the stage's {dim} "
                    "channels is expected"
                )
        ratios = tuple(width // dim for width, dim in zip(hidden, dims, strict=True))
        for name, plan in PUBLISHED_VANS.items():
            if (plan.dims, plan.depths, plan.mlp_ratios) == (dims, depths, ratios):
                return {"backbone": name, "drop_path": {"van_large": 0.25, "van_huge": 0.3}.get(name, 0.1)}
        return {"backbone_dims": dims, "backbone_depths": depths, "mlp_ratios": ratios}
    if "backbone.stem.0.weight" in weights:
        depths = tuple(_depth(weights, f"backbone.layer{stage}.", path) for stage in stages)
        dims = tuple(_shape(weights, f"backbone.layer{stage}.0.conv3.weight", path)[0] for stage in stages)
        stem = tuple(_shape(weights, f"backbone.stem.{index}.weight", path)[0] for index in (0, 3, 6))
        published = PUBLISHED_RESNETS["resnet101"]
        return {
            "backbone": "resnet101",
            "backbone_dims": () if dims == published.dims else dims,
            "backbone_depths": () if depths == published.depths else depths,
            "stem_channels": () if stem == published.stem_channels else stem,
        }
    found = next((name for name in weights if name.startswith("backbone.")), None)
    what = f"it has {found}" if found else "it has no tensor backbone.*"
    raise ValueError(f"{path}: its backbone is neither a VAN (patch_embed1) nor a ResNet-V1c (stem): {what}")


def _shape(weights: Weights, name: str, path: Path) -> tuple[int, ...]:
    if name not in weights:
        raise ValueError(f"{path}: {name} is missing")
    if weights[name].dim() != 4:
        raise ValueError(
            f"{path}: {name} is {tuple(weights[name].shape)}; a convolution's four dimensions are expected"
        )
    return tuple(weights[name].shape)


def _depth(weights: Weights, prefix: str, path: Path) -> int:
    indices = {name[len(prefix) :].split(".")[0] for name in weights if name.startswith(prefix)}
    numbers = sorted(int(index) for index in indices if index.isdecimal() and len(index) < 6)
    if not numbers or numbers != list(range(len(numbers))):
        raise ValueError(f"{path}: {prefix}* are blocks {numbers}; 0, 1, and so on without a gap are expected")
    return len(numbers)


def _renamed(model: Segmentor, weights: Weights, path: Path) -> dict[str, Tensor]:
    """Return the file's tensors under our names, with our stored bases, after checking that they are all and fit."""
    renamed: dict[str, Tensor] = {}
    expected: set[str] = set()
    for name, tensor in model.state_dict().items():
        if name == STORED_BASES:
            renamed[name] = tensor
            continue
        public = public_name(name, model.config.head)
        expected.add(public)
        if public not in weights:
            raise ValueError(f"{path}: {public} is missing")
        _check_shape(path, public, weights[public], tensor)
        renamed[name] = weights[public]
    for name in weights:
        if name not in expected and not name.endswith(IGNORED_SUFFIX):
            raise ValueError(f"{path}: {name} has no place in {model.config.head} with {model.config.backbone}")
    return renamed


def _check_shape(path: Path, name: str, theirs: Tensor, ours: Tensor) -> None:
    if theirs.shape != ours.shape:
        raise ValueError(f"{path}: {name} is {tuple(theirs.shape)}; {tuple(ours.shape)} is expected")

"""Public checkpoints: what the public code computes from them, every size, and what is wrong with bad ones."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load_arrays, relative_error
from torch import Tensor

import hamgan.segmentation
from hamgan.segmentation.load import load_backbone, public_state_dict
from hamgan.segmentation.model import SegmentationConfig, Segmentor

TINY = SegmentationConfig(
    num_classes=5,
    backbone_dims=(8, 16, 24, 16),
    backbone_depths=(1, 2, 1, 3),
    mlp_ratios=(2, 3, 4, 2),
    squeeze_channels=32,
    channels=64,
    rank=64,
)
RESNET: dict[str, Any] = {
    "backbone": "resnet101",
    "backbone_dims": (16, 24, 32, 64),
    "backbone_depths": (1, 2, 1, 2),
    "mlp_ratios": (),
    "stem_channels": (4, 6, 8),
}


def randomized(config: SegmentationConfig) -> Segmentor:
    """Build a segmentor whose norms and statistics are not trivial."""
    torch.manual_seed(0)
    model = Segmentor(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.dim() == 1:
                tensor.add_(torch.randn_like(tensor) * 0.3)
    return model


def save_public(path: Path, weights: dict[str, Tensor]) -> Path:
    """Write weights as mmcv does."""
    counts = {
        f"{name.removesuffix('running_mean')}num_batches_tracked": torch.tensor(7)
        for name in weights
        if name.endswith("running_mean")
    }
    torch.save({"meta": {"CLASSES": ["a", "b"], "epoch": 3}, "state_dict": weights | counts}, path)
    return path


@pytest.mark.parametrize("name", ["seg_light", "seg_ham_plus"])
def test_a_public_checkpoint_gives_the_public_codes_numbers(name: str, reference: Callable[[str], Path]) -> None:
    """Every stage and the logits to 1e-5 of their largest value."""
    expected = load_arrays(reference(f"{name}/io.npz"))
    model = hamgan.segmentation.load(reference(f"{name}/checkpoint.pth"), expected["bases"])
    assert model.config.rank == 8 and not model.training
    for index, ours in enumerate(model.features(expected["image"])):
        assert relative_error(ours, expected[f"stage{index + 1}"]) < 1e-5
    assert relative_error(model.coarse_logits(expected["image"]), expected["logits"]) < 1e-5
    assert model(expected["image"]).shape == (2, 5, 64, 96)


def test_the_public_stages_norms_have_eps_1e5(reference: Callable[[str], Path]) -> None:
    """In float64 eps 1e-6, the ImageNet classifier's, is ten times farther from the public outputs than float32's error."""
    expected = load_arrays(reference("seg_light/io.npz"))
    model = hamgan.segmentation.load(reference("seg_light/checkpoint.pth")).double()
    errors = {}
    for eps in (1e-5, 1e-6):
        for stage in model.backbone.stages:
            stage.norm.eps = eps
        errors[eps] = relative_error(model.features(expected["image"].double())[0], expected["stage1"].double())
    assert errors[1e-5] < 1e-6 < 5e-6 < errors[1e-6]


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ham_channels": 24},
        {"head": "ham_net"},
        {"head": "ham_net_plus", "ham_channels": 96, "num_classes": 2},
        {"head": "ham_net_plus", **RESNET},
        {"head": "light_ham", **RESNET},
    ],
    ids=str,
)
def test_every_size_is_read_from_keys_and_shapes(changes: dict[str, Any], auxiliary: bool, tmp_path: Path) -> None:
    config = replace(TINY, auxiliary=auxiliary, auxiliary_channels=64 if auxiliary else 256, **changes)
    model = randomized(config)
    loaded = hamgan.segmentation.load(save_public(tmp_path / "model.pth", public_state_dict(model)))
    assert loaded.config == config
    images = torch.randn(1, 3, 40, 64)
    assert torch.equal(loaded(images), model(images))


def test_what_no_weight_tells_is_an_argument(tmp_path: Path) -> None:
    model = randomized(replace(TINY, head="ham_net", backbone_strides=(4, 2, 1, 1), rank=5, eval_steps=3, seed=2))
    path = save_public(tmp_path / "model.pth", public_state_dict(model))
    images = torch.randn(1, 3, 40, 64)
    loaded = hamgan.segmentation.load(path, rank=5, eval_steps=3, seed=2, strides=(4, 2, 1, 1))
    assert torch.equal(loaded(images), model(images))
    assert hamgan.segmentation.load(path).coarse_logits(images).shape[2:] == (2, 2)
    with_bases = hamgan.segmentation.load(path, torch.rand(1, 32, 9).numpy(), gradient="one_step", train_steps=2)
    assert (with_bases.config.rank, with_bases.config.gradient, with_bases.config.train_steps) == (9, "one_step", 2)


def test_published_systems_are_known_by_their_sizes(tmp_path: Path) -> None:
    """Backbone's name, drop path and rank, none of which a weight tells; the file's values do not matter."""
    config = SegmentationConfig(backbone="van_tiny", rank=16)
    weights = {name: torch.zeros(t.shape) for name, t in public_state_dict(Segmentor(config)).items()}
    assert hamgan.segmentation.load(save_public(tmp_path / "tiny.pth", weights)).config == config


def test_half_precision_files_and_bare_state_dicts_are_read(tmp_path: Path) -> None:
    model = randomized(TINY)
    weights = {name: tensor.half() for name, tensor in public_state_dict(model).items()}
    torch.save(weights, tmp_path / "half.pth")
    loaded = hamgan.segmentation.load(tmp_path / "half.pth")
    assert next(loaded.parameters()).dtype == torch.float32
    assert relative_error(loaded(x := torch.randn(1, 3, 32, 32)), model(x)) < 0.05


def without(weights: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if part not in name}


BAD: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "another head": (
        lambda w: {**without(w, "decode_head"), "decode_head.convs.0.weight": torch.zeros(2, 2, 1, 1)},
        "neither Light-Ham nor HamNet.*its decode_head has convs",
    ),
    "no head": (lambda w: without(w, "decode_head"), "it has no decode_head"),
    "another backbone": (
        lambda w: {**without(w, "backbone"), "backbone.conv1.weight": torch.zeros(64, 3, 7, 7)},
        "neither a VAN .* nor a ResNet-V1c .*it has backbone.conv1.weight",
    ),
    "a missing tensor": (lambda w: without(w, "ham_out.conv"), "decode_head.hamburger.ham_out.conv.weight is missing"),
    "a missing stage": (lambda w: without(w, "patch_embed3.proj"), "backbone.patch_embed3.proj.weight is missing"),
    "a gap in a stage": (lambda w: without(w, "block4.1."), r"backbone.block4.\* are blocks \[0, 2\]"),
    "a tensor too many": (
        lambda w: {**w, "decode_head.bn.weight": torch.zeros(3)},
        "decode_head.bn.weight has no place",
    ),
    "a wrong shape": (
        lambda w: {**w, "decode_head.align.gn.bias": torch.zeros(7)},
        r"decode_head.align.gn.bias is \(7,\); \(64,\) is expected",
    ),
    "too few dimensions": (
        lambda w: {**w, "decode_head.squeeze.conv.weight": torch.zeros(7)},
        "decode_head.squeeze.conv.weight is .*four dimensions",
    ),
    "channels without groups": (
        lambda w: {**w, "decode_head.align.conv.weight": torch.zeros(40, 32, 1, 1)},
        "channels is 40; it must be divisible by the 32 groups",
    ),
    "an MLP of odd width": (
        lambda w: {**w, "backbone.block2.0.mlp.fc1.weight": torch.zeros(47, 16, 1, 1)},
        "47 outputs; a multiple of the stage's 16",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_checkpoint_is_one_line_with_its_path(case: str, tmp_path: Path) -> None:
    change, message = BAD[case]
    path = save_public(tmp_path / "bad.pth", change(public_state_dict(Segmentor(TINY))))
    with pytest.raises(ValueError, match=message) as error:
        hamgan.segmentation.load(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


class Code:
    """What no file of weights should hold."""


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        hamgan.segmentation.load(tmp_path / "absent.pth")
    torch.save({"meta": {}, "state_dict": {"x": Code()}}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="refused"):
        hamgan.segmentation.load(tmp_path / "code.pth")
    torch.save({"meta": {"epoch": 3}}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="holds no weights"):
        hamgan.segmentation.load(tmp_path / "empty.pth")
    path = save_public(tmp_path / "model.pth", public_state_dict(Segmentor(TINY)))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="damaged"):
        hamgan.segmentation.load(path)


@pytest.mark.parametrize(
    ("bases", "rank", "message"),
    [
        (torch.rand(32, 8), None, r"bases have shape \(32, 8\)"),
        (torch.rand(1, 24, 8), None, r"this ham needs \(1, 32, R\)"),
        (torch.rand(1, 32, 8), 9, "rank is 9; the bases given have 8"),
    ],
)
def test_bad_bases_are_named(bases: Tensor, rank: int | None, message: str, tmp_path: Path) -> None:
    path = save_public(tmp_path / "model.pth", public_state_dict(Segmentor(TINY)))
    with pytest.raises(ValueError, match=message):
        hamgan.segmentation.load(path, bases, rank=rank)


def imagenet_weights(model: Segmentor) -> dict[str, Tensor]:
    """Return a VAN's weights as the ImageNet files hold them."""
    weights = public_state_dict(model)
    backbone = {name[9:]: tensor for name, tensor in weights.items() if name.startswith("backbone.")}
    return backbone | {"head.weight": torch.zeros(1000, 16), "head.bias": torch.zeros(1000)}


def test_an_imagenet_backbone_fills_the_backbone_alone(tmp_path: Path) -> None:
    source = randomized(TINY)
    path = save_public(tmp_path / "van.pth.tar", imagenet_weights(source))
    model = Segmentor(TINY).eval()
    head = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    assert load_backbone(model, path) == ()
    images = torch.randn(1, 3, 32, 32)
    for ours, theirs in zip(model.features(images), source.features(images), strict=True):
        assert torch.equal(ours, theirs)
    assert all(torch.equal(tensor, head[name]) for name, tensor in model.head.state_dict().items())


def test_the_backbone_of_a_segmentor_is_taken_too(tmp_path: Path) -> None:
    source = randomized(replace(TINY, head="ham_net"))
    path = save_public(tmp_path / "model.pth", public_state_dict(source))
    model = Segmentor(TINY).eval()
    assert load_backbone(model, path) == ()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(model.features(images)[3], source.features(images)[3])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"backbone_depths": (1, 1, 1, 3)}, "of another backbone than van_small: it has no block2.1"),
        ({"backbone_depths": (2, 2, 1, 3)}, "block1.1.* has no place in it"),
        ({"backbone_dims": (8, 16, 32, 16)}, r"patch_embed3.* is \(32,"),
        (RESNET, "of another backbone than van_small"),
    ],
)
def test_a_backbone_of_another_size_is_refused_and_changes_nothing(
    other: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = save_public(tmp_path / "van.pth.tar", imagenet_weights(Segmentor(replace(TINY, **other))))
    model = Segmentor(TINY)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_backbone(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

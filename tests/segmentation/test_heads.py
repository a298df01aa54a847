"""Heads, their Hamburger, and the assembled segmentor."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hamgan.nn.hamburger import HamburgerConfig
from hamgan.segmentation.hamburger import Hamburger, HamVersion
from hamgan.segmentation.layers import BatchNorm, BilinearResize
from hamgan.segmentation.model import SegmentationConfig, Segmentor

TINY = SegmentationConfig(
    num_classes=5,
    backbone_dims=(8, 8, 16, 16),
    backbone_depths=(1, 1, 1, 1),
    mlp_ratios=(2, 2, 2, 2),
    squeeze_channels=32,
    channels=32,
    rank=4,
)
HEADS: dict[str, dict[str, Any]] = {
    "light_ham": {},
    "ham_net": {"head": "ham_net", "backbone_strides": (4, 2, 1, 1)},
    "ham_net_plus": {"head": "ham_net_plus", "ham_channels": 20},
    "ham_net_voc": {"head": "ham_net_voc", "ham_version": "V2", "squeeze_channels": 24, "align_corners": True},
}


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(4, channels)


@pytest.mark.parametrize("version", ["V1", "V2", "V2+"])
def test_the_hamburger_is_its_parts_in_order(version: HamVersion) -> None:
    torch.manual_seed(0)
    burger = Hamburger(8, HamburgerConfig(rank=3, latent_channels=12), version=version, norm=group_norm).eval()
    for parameter in burger.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 8, 5, 4)
    h = F.relu(burger.lower_bread(x))
    h = burger.ham(h.flatten(2)).unflatten(2, (5, 4))
    if burger.cheese is not None:
        h = F.relu(F.group_norm(F.conv2d(h, burger.cheese.conv.weight), 4, *burger.cheese.norm.parameters()))
    h = F.conv2d(h, burger.upper_bread.weight)
    if version == "V1":
        h = F.group_norm(h, 4, *burger.upper_bread_norm.parameters())
    expected = burger.shortcut_gate * x + burger.gate * h if version == "V2+" else x + h
    assert torch.allclose(burger(x), F.relu(expected), atol=1e-5)
    assert burger.lower_bread.bias is not None and burger.upper_bread.bias is None


def test_v2_plus_begins_as_the_identity() -> None:
    burger = Hamburger(8, HamburgerConfig(rank=3), version="V2+", norm=group_norm)
    x = torch.randn(2, 8, 5, 4)
    assert torch.equal(burger(x), F.relu(x))


@pytest.mark.parametrize("head", HEADS)
def test_logits_have_the_images_size_and_train_every_parameter(head: str) -> None:
    torch.manual_seed(0)
    model = Segmentor(replace(TINY, auxiliary=True, auxiliary_channels=32, **HEADS[head])).train()
    images = torch.randn(2, 3, 47, 66)
    logits = model.forward_train(images)
    assert logits.auxiliary is not None
    assert logits.main.shape == logits.auxiliary.shape == (2, 5, 47, 66)
    (logits.main.square().mean() + logits.auxiliary.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or name.endswith(("proj_in.bias", "fc1.bias")), name


def test_the_full_logits_are_the_coarse_ones_resized() -> None:
    for align_corners in (False, True):
        model = Segmentor(replace(TINY, align_corners=align_corners)).eval()
        images = torch.randn(1, 3, 64, 40)
        coarse = model.coarse_logits(images)
        assert coarse.shape == (1, 5, 8, 5)
        expected = F.interpolate(coarse, size=(64, 40), mode="bilinear", align_corners=align_corners)
        assert torch.equal(model(images), expected)


def test_light_ham_concatenates_stages_two_to_four_at_the_size_of_stage_two() -> None:
    model = Segmentor(TINY)
    maps = [torch.full((1, dim, size, size), float(dim + size)) for dim, size in ((8, 16), (8, 8), (16, 4), (16, 2))]
    gathered = model.gather(maps)
    assert gathered.shape == (1, 40, 8, 8)
    assert [float(x[0, 0, 3, 3]) for x in gathered.split([8, 16, 16], 1)] == [16, 20, 18]


def test_evaluation_is_deterministic_and_training_follows_the_keys() -> None:
    config = replace(TINY, dropout=0.0, drop_path=0.0)
    torch.manual_seed(0)
    model = Segmentor(config).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), model(images))
    assert torch.allclose(model(images[1:]), model(images)[1:], atol=1e-6)
    model.train()
    keys = torch.tensor([3, 4])
    first, again, other = model(images, keys), model(images, keys), model(images, keys + 7)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_seeds_give_other_stored_bases_and_given_bases_win() -> None:
    torch.manual_seed(0)
    model = Segmentor(TINY).eval()
    other = Segmentor(replace(TINY, seed=1)).eval()
    bases = other.state_dict()["head.hamburger.ham.bases"]
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("bases")}
    other.load_state_dict(weights, strict=False)
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(images), other(images))
    assert torch.equal(model(images, bases), other(images))


def test_one_step_and_unrolled_gradients_differ_and_outputs_do_not() -> None:
    torch.manual_seed(0)
    unrolled = Segmentor(TINY).eval()
    one_step = Segmentor(replace(TINY, gradient="one_step")).eval()
    one_step.load_state_dict(unrolled.state_dict())
    images = torch.randn(1, 3, 32, 32)
    gradients = []
    for model in (unrolled, one_step):
        logits = model(images)
        # To rounding: steps that are not differentiated may be taken by compiled code, which sums in another order.
        torch.testing.assert_close(logits, unrolled(images), rtol=1e-5, atol=1e-6)
        gradients.append(torch.autograd.grad(logits.square().sum(), model.head.squeeze.conv.weight)[0])
    assert not torch.allclose(gradients[0], gradients[1], rtol=1e-3)


def test_identity_takes_the_hamburger_out() -> None:
    torch.manual_seed(0)
    model = Segmentor(replace(TINY, ham="identity")).eval()
    assert not [name for name in model.state_dict() if "hamburger" in name]
    maps = model.features(torch.randn(1, 3, 32, 32))
    head = model.head
    expected = head.classify(head.align(head.squeeze(model.gather(maps))))
    assert torch.equal(head(model.gather(maps)), expected)


@pytest.mark.parametrize("kind", ["VQ", "CD"])
def test_other_decompositions_take_maps_of_any_sign(kind: Any) -> None:
    torch.manual_seed(0)
    burger = Hamburger(8, HamburgerConfig(kind=kind, rank=3), version="V1", norm=group_norm).eval()
    h = burger.lower_bread(x := torch.randn(1, 8, 6, 6))
    assert (h < 0).any()
    h = burger.upper_bread(burger.ham(h.flatten(2)).unflatten(2, (6, 6)))
    assert torch.allclose(burger(x), F.relu(x + burger.upper_bread_norm(h)), atol=1e-5)


def test_head_weights_begin_as_published() -> None:
    torch.manual_seed(0)
    head = Segmentor(replace(TINY, num_classes=150, squeeze_channels=256, channels=256)).head
    assert float(head.classify.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert float(head.align.conv.weight.detach().std()) == pytest.approx((2 / 256) ** 0.5, rel=0.05)
    assert not head.classify.bias.any()


def test_cross_replica_and_momentum_reach_every_batch_norm() -> None:
    model = Segmentor(replace(TINY, head="ham_net_voc", cross_replica=False, batch_norm_momentum=3e-4))
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    assert len(norms) == 4 + 2 * 4 + 3
    assert {(norm.cross_replica, norm.momentum) for norm in norms} == {(False, 3e-4)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone_dims": (8, 8)}, r"backbone_dims is \[8, 8\]; it must be 4"),
        ({"backbone_depths": (1, 0, 1, 1)}, "backbone_depths is"),
        ({"squeeze_channels": 40}, "squeeze_channels is 40; it must be divisible by the 32 groups"),
        ({"channels": 0}, "channels is 0; it must be at least 1"),
        ({"rank": 0}, "rank is 0"),
        ({"eval_steps": -1}, "eval_steps is -1"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"batch_norm_momentum": 0.0}, "batch_norm_momentum is 0.0"),
        ({"seed": -1}, "seed is -1"),
        ({"stem_channels": (8, 8, 8)}, "only a ResNet has a stem, not van_small"),
        ({"backbone": "resnet101"}, "only a VAN has MLPs, not resnet101"),
        ({"backbone": "resnet101", "mlp_ratios": (), "backbone_dims": (8, 8, 18, 16)}, "divisible by 4"),
        ({"auxiliary": True, "auxiliary_channels": 40}, "auxiliary_channels is 40"),
    ],
)
def test_bad_configurations_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 31, 64), "images are 31x64; no side may be smaller than the backbone's stride, 32"),
        ((1, 1, 64, 64), r"\(1, 1, 64, 64\); \(B, 3, H, W\)"),
        ((3, 64, 64), r"\(B, 3, H, W\)"),
    ],
)
def test_bad_images_are_named(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Segmentor(TINY).eval()(torch.zeros(shape))


def test_gradients_go_back_through_resizing_as_through_torchs() -> None:
    x = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    laid_out = []
    resized = BilinearResize(align_corners=False)(ours, (9, 8))
    resized.grad_fn.register_prehook(lambda gradients: laid_out.append(gradients[0]))  # type: ignore[union-attr]
    weight = torch.randn(2, 10, 9, 8, generator=torch.Generator().manual_seed(1))
    for source, map_ in ((ours, resized), (theirs, F.interpolate(theirs, (9, 8), mode="bilinear"))):
        (torch.cat([map_, torch.ones(2, 4, 9, 8)], 1) * weight).sum().backward()  # type: ignore[no-untyped-call]
        assert source.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert laid_out[0].is_contiguous(memory_format=torch.channels_last)

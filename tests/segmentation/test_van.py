"""The VAN backbone, its dilated convolution, and the layers that it shares."""

import pytest
import torch
import torch.distributed as torch_dist
import torch.nn.functional as F
from torch import Tensor, nn

from hamgan.segmentation.layers import BatchNorm, DilatedDepthwiseConv, DropPath
from hamgan.segmentation.van import PUBLISHED_VANS, VAN, VANBlock, VANPlan

TINY = VANPlan(dims=(4, 6, 8, 10), depths=(1, 2, 2, 1), mlp_ratios=(2, 2, 2, 2))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("batch", "height", "width", "dilation"), [(2, 12, 9, 3), (1, 13, 7, 3), (3, 2, 1, 3), (2, 8, 9, 2)]
)
def test_the_dilated_convolution_is_the_librarys(
    memory_format: torch.memory_format, batch: int, height: int, width: int, dilation: int
) -> None:
    """Outputs and all three gradients, sides divisible by the dilation or not, and smaller than it."""
    torch.manual_seed(0)
    conv = DilatedDepthwiseConv(5, 7, dilation=dilation)
    x = torch.randn(batch, 5, height, width).contiguous(memory_format=memory_format).requires_grad_(True)
    dy = torch.randn(batch, 5, height, width)
    results = []
    for run in (conv, lambda x: nn.Conv2d.forward(conv, x)):
        y = run(x)
        results.append((y, *torch.autograd.grad(y, [x, *conv.parameters()], dy)))
    for ours, theirs in zip(*results, strict=True):
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_block_is_the_papers_formula() -> None:
    """By hand, in evaluation: x + ls1 (y + P2(u * conv1(conv_spatial(conv0(u))))), then x + ls2 MLP(y)."""
    torch.manual_seed(0)
    block = VANBlock(6, mlp_ratio=3, drop_path=0.0, norm=BatchNorm).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        for norm in (block.norm1, block.norm2):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 6, 11, 10)

    def normed(x: Tensor, norm: BatchNorm) -> Tensor:
        standard = (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + 1e-5).sqrt()
        return standard * norm.weight[:, None, None] + norm.bias[:, None, None]

    a, m = block.attention, block.mlp
    y = normed(x, block.norm1)
    u = F.gelu(F.conv2d(y, a.proj_in.weight, a.proj_in.bias))
    attention = F.conv2d(u, a.local.weight, a.local.bias, padding=2, groups=6)
    attention = F.conv2d(attention, a.dilated.weight, a.dilated.bias, padding=9, dilation=3, groups=6)
    attention = F.conv2d(attention, a.pointwise.weight, a.pointwise.bias)
    y = y + F.conv2d(u * attention, a.proj_out.weight, a.proj_out.bias)
    expected = x + block.scale1[:, None, None] * y
    h = F.conv2d(normed(expected, block.norm2), m.fc1.weight, m.fc1.bias)
    h = F.gelu(F.conv2d(h, m.depthwise.weight, m.depthwise.bias, padding=1, groups=18))
    expected = expected + block.scale2[:, None, None] * F.conv2d(h, m.fc2.weight, m.fc2.bias)
    assert torch.allclose(block(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("strides", "sizes"),
    [((4, 2, 2, 2), [(17, 12), (9, 6), (5, 3), (3, 2)]), ((4, 2, 1, 1), [(17, 12), (9, 6), (9, 6), (9, 6)])],
)
def test_maps_have_the_sizes_of_their_strides_rounded_up(
    strides: tuple[int, ...], sizes: list[tuple[int, int]]
) -> None:
    plan = VANPlan(dims=TINY.dims, depths=TINY.depths, mlp_ratios=TINY.mlp_ratios, strides=strides)
    van = VAN(plan, drop_path=0.0, norm=BatchNorm).eval()
    maps = van(torch.randn(1, 3, 65, 47))
    assert [tuple(x.shape[1:]) for x in maps] == [(dim, *size) for dim, size in zip(TINY.dims, sizes, strict=True)]


def test_a_stage_ends_normed_over_channels_and_feeds_the_next_one_normed() -> None:
    torch.manual_seed(0)
    van = VAN(TINY, drop_path=0.0, norm=BatchNorm).eval()
    maps = van(torch.randn(1, 3, 64, 64))
    assert torch.allclose(maps[0].mean(1), torch.zeros(()), atol=1e-5)
    assert torch.allclose(maps[0].var(1, correction=0), torch.ones(()), atol=1e-2)
    assert torch.equal(van.stages[1](maps[0]), maps[1])


def test_drop_path_grows_linearly_over_all_blocks() -> None:
    van = VAN(TINY, drop_path=0.3, norm=BatchNorm)
    rates = [block.drop_path.rate for stage in van.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.06, 0.12, 0.18, 0.24, 0.3])


def test_drop_path_drops_whole_samples_and_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 3, 3)
    y = drop(x)
    per_sample = y.flatten(1)
    assert ((per_sample == 0).all(1) | torch.isclose(per_sample, torch.tensor(4 / 3)).all(1)).all()
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert drop.eval()(x) is x


def test_initial_weights_are_the_public_ones() -> None:
    """Deviation sqrt(2 / fan_out), fan_out of a depthwise convolution counting its own outputs alone; scales of 0.01."""
    torch.manual_seed(0)
    plan = VANPlan(dims=(64, 64, 64, 64), depths=(1, 1, 1, 1), mlp_ratios=(8, 8, 8, 8))
    van = VAN(plan, drop_path=0.0, norm=BatchNorm)
    block = van.stages[0].blocks[0]
    assert float(block.mlp.fc1.weight.detach().std()) == pytest.approx((2 / 512) ** 0.5, rel=0.05)
    assert float(block.mlp.depthwise.weight.detach().std()) == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert float(van.stages[1].embed.weight.detach().std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)
    assert not block.mlp.fc1.bias.any() and torch.equal(block.scale1, torch.full((64,), 0.01))


def test_published_plans() -> None:
    depths = {name: plan.depths for name, plan in PUBLISHED_VANS.items()}
    assert depths == {
        "van_tiny": (3, 3, 5, 2),
        "van_small": (2, 2, 4, 2),
        "van_base": (3, 3, 12, 3),
        "van_large": (3, 5, 27, 3),
        "van_huge": (3, 6, 40, 3),
    }


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_torchs(training: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm(5, momentum=0.3), nn.BatchNorm2d(5, momentum=0.3)
    for name, parameter in ours.named_parameters():
        nn.init.normal_(parameter)
        theirs.get_parameter(name).data.copy_(parameter)
    ours.train(training), theirs.train(training)
    x = torch.randn(3, 5, 4, 6) * 2 + 1
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    assert torch.allclose(ours.running_mean, theirs.running_mean) and torch.allclose(
        ours.running_var, theirs.running_var
    )


def test_batch_norm_across_replicas_is_the_local_one_for_a_lone_process(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way over the process group, with gain and bias; joining several processes' statistics is tested with nn."""
    torch.manual_seed(0)
    local, across = BatchNorm(5), BatchNorm(5)
    nn.init.normal_(local.weight), nn.init.normal_(local.bias)
    across.load_state_dict(local.state_dict())
    x = torch.randn(3, 5, 4, 6)
    store = tmp_path_factory.mktemp("store") / "store"
    torch_dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    try:
        monkeypatch.setattr(across, "spans_replicas", lambda: True)
        assert torch.allclose(across(x), local(x), atol=1e-5)
        assert torch.allclose(across.running_var, local.running_var, atol=1e-6)
    finally:
        torch_dist.destroy_process_group()

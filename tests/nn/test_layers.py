"""Spectral norm, norms, resampling, context blocks."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import relative_error
from torch import Tensor

from hamgan.nn import tiles
from hamgan.nn.attention import SelfAttention, attend, attend_plainly
from hamgan.nn.blocks import DBlock, GBlock
from hamgan.nn.convolution import conv2d
from hamgan.nn.hamburger import Hamburger, HamburgerConfig
from hamgan.nn.norm import BatchNorm, ConditionalBatchNorm
from hamgan.nn.resample import conv2d_downsample, upsample_conv2d
from hamgan.nn.second_order import differentiable_once
from hamgan.nn.spectral_norm import SNConv2d, SNEmbedding, SNLinear, SpectralNormConfig, spectral_sigmas

EQUALITY = SpectralNormConfig()


@pytest.mark.parametrize("side", ["output", "input"])
@pytest.mark.parametrize("layer", ["conv", "linear", "embedding"])
def test_power_iteration_finds_the_largest_singular_value(layer: str, side: str) -> None:
    torch.manual_seed(0)
    config = SpectralNormConfig(side=side)  # type: ignore[arg-type]
    module = {
        "conv": lambda: SNConv2d(6, 5, 3, spectral_norm=config),
        "linear": lambda: SNLinear(7, 5, spectral_norm=config),
        "embedding": lambda: SNEmbedding(9, 4, spectral_norm=config),
    }[layer]()
    for _ in range(200):
        weight = module.spectral_norm(module.weight)
    matrix = module.weight.flatten(1)
    largest = torch.linalg.matrix_norm(matrix, 2)
    assert torch.allclose(weight, module.weight / largest, rtol=1e-4)
    assert torch.allclose(spectral_sigmas(torch.nn.Sequential(module))["0"], largest, rtol=1e-4)


def test_inequality_leaves_small_weights_alone_and_equality_does_not() -> None:
    torch.manual_seed(0)
    for scale, unchanged in ((0.01, True), (10.0, False)):
        layer = SNLinear(8, 8, spectral_norm=SpectralNormConfig(mode="inequality")).eval()
        with torch.no_grad():
            layer.weight.copy_(torch.eye(8) * scale)
        assert torch.equal(layer.spectral_norm(layer.weight), layer.weight) == unchanged
        layer.spectral_norm.config = EQUALITY
        assert not torch.equal(layer.spectral_norm(layer.weight), layer.weight)


def test_u_advances_in_training_only_and_the_gradient_goes_through_sigma() -> None:
    torch.manual_seed(0)
    layer = SNLinear(6, 4, spectral_norm=EQUALITY)
    before = layer.spectral_norm.u.clone()
    layer.eval()(torch.ones(1, 6))
    assert torch.equal(layer.spectral_norm.u, before)
    layer.train()(torch.ones(1, 6))
    assert not torch.equal(layer.spectral_norm.u, before)
    for _ in range(100):
        layer(torch.ones(1, 6))
    # W / sigma does not change when W is scaled, so the gradient is orthogonal to W.
    layer.spectral_norm(layer.weight).square().mul(torch.rand(4, 6)).sum().backward()
    assert abs(float((layer.weight.grad * layer.weight).sum())) < 1e-4


@pytest.mark.parametrize("side", ["output", "input"])
@pytest.mark.parametrize("mode", ["equality", "inequality"])
@pytest.mark.parametrize("scale", [0.05, 5.0])
def test_the_weight_does_not_depend_on_its_layout_and_has_the_plain_gradients(
    mode: str, side: str, scale: float
) -> None:
    """Weight, u, gradient and the gradient of a gradient equal those of W / sigma written plainly, in either memory format."""
    config = SpectralNormConfig(mode=mode, side=side)  # type: ignore[arg-type]
    torch.manual_seed(0)
    plain = SNConv2d(6, 5, 3, spectral_norm=config).double()
    with torch.no_grad():
        plain.weight.mul_(scale)
    direction, other = torch.randn(2, 5, 6, 3, 3, dtype=torch.float64)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)

    matrix, u = plain.weight.flatten(1), plain.spectral_norm.u
    matrix = matrix if side == "output" else matrix.t()
    with torch.no_grad():
        v = F.normalize(matrix.t() @ u, dim=0, eps=config.eps)
        u = F.normalize(matrix @ v, dim=0, eps=config.eps)
    sigma = u @ matrix @ v
    expected = plain.weight / (sigma.clamp_min(1.0) if mode == "inequality" else sigma)

    def derivatives(out: Tensor, weight: Tensor) -> list[Tensor]:
        (fast,) = torch.autograd.grad((out * direction).sum(), weight, retain_graph=True)
        (first,) = torch.autograd.grad((out.square() * direction).sum(), weight, create_graph=True)
        (second,) = torch.autograd.grad((first * other).sum(), weight)
        return [out, fast, first, second]

    wanted = derivatives(expected, plain.weight)
    for layer in (plain, last):
        found = derivatives(layer.spectral_norm(layer.weight), layer.weight)
        for ours, theirs in zip(found, wanted, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)
        assert torch.allclose(layer.spectral_norm.u, u, rtol=1e-9)


@pytest.mark.parametrize("spread", [False, True])
def test_convolutions_give_the_bias_its_gradient(spread: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 6, 8, 8), torch.randn(5, 6, 3, 3), torch.randn(5)

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if spread:
            return F.conv_transpose2d(x, weight.flip(2, 3).transpose(0, 1), bias, stride=2)
        return F.conv2d(x, weight, bias, stride=2)

    results = []
    for run in (lambda *args: conv2d(*args, stride=1 if spread else 2, spread=spread), plain):
        leaves = [tensor.clone().requires_grad_(True) for tensor in (x, weight, bias)]
        out = run(*leaves)
        results.append([out, *torch.autograd.grad(out.sin().sum(), leaves)])
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours, theirs) < 1e-5


def upsample_plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2), weight, bias, padding=weight.shape[-1] // 2)


def downsample_plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.avg_pool2d(F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2), 2)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [2, 4, 8, 16])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(
    ("fused", "plain"), [(upsample_conv2d, upsample_plain), (conv2d_downsample, downsample_plain)], ids=["up", "down"]
)
def test_fused_resampling_is_exact(fused, plain, kernel: int, size: int, channels_last: bool) -> None:  # type: ignore[no-untyped-def]
    """Outputs, gradients, and the gradient of a gradient (R1) equal the two-step form's."""
    results = []
    for run in (fused, plain):
        torch.manual_seed(0)
        x = torch.randn(2, 6, size, size)
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        x.requires_grad_(True)
        weight, bias = torch.randn(5, 6, kernel, kernel), torch.randn(5, requires_grad=True)
        weight = weight.contiguous(memory_format=torch.channels_last) if channels_last else weight
        weight.requires_grad_(True)
        out = run(x, weight, bias)
        (gradient,) = torch.autograd.grad(out.sin().sum(), x, create_graph=True)
        penalty = gradient.square().sum()
        second = torch.autograd.grad(penalty, (x, weight, bias), retain_graph=True)
        first = torch.autograd.grad(out.cos().sum(), (weight, bias))
        results.append([out, gradient, *first, *second])
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("channels", [5, 16])
def test_a_downsampling_convolution_takes_bias_and_relu_of_what_it_reads(channels: int, kernel: int) -> None:
    def plain(x: Tensor, weight: Tensor, before: Tensor) -> Tensor:
        return F.avg_pool2d(F.conv2d(F.relu(x + before.view(-1, 1, 1)), weight, padding=kernel // 2), 2)

    def fused(x: Tensor, weight: Tensor, before: Tensor) -> Tensor:
        return conv2d_downsample(x, weight, None, before=before, relu=True)

    results = []
    for run in (fused, plain):
        torch.manual_seed(0)
        shapes = ((2, channels, 8, 12), (6, channels, kernel, kernel), (channels,))
        leaves = [torch.randn(shape).requires_grad_(True) for shape in shapes]
        out = run(leaves[0].contiguous(memory_format=torch.channels_last), *leaves[1:])
        first = torch.autograd.grad(out.sin().sum(), leaves, create_graph=True)
        results.append([out, *first, *torch.autograd.grad(first[0].square().sum(), leaves)])
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours, theirs) < 1e-5


def test_conditional_batch_norm_standardises_then_scales_by_class() -> None:
    torch.manual_seed(0)
    norm = ConditionalBatchNorm(
        3, condition="per_class", condition_dim=2, spectral_norm=EQUALITY, eps=1e-5, momentum=0.5, cross_replica=True
    )
    with torch.no_grad():
        norm.gain.weight.copy_(torch.tensor([[1.0, 1, 1], [2, 2, 2]]))
        norm.bias.weight.copy_(torch.tensor([[0.0, 0, 0], [5, 5, 5]]))
    x = torch.randn(8, 3, 6, 6) * 4 + 7
    out = norm(x, torch.tensor([0] * 4 + [1] * 4))
    standard = (x - x.mean((0, 2, 3), keepdim=True)) / x.var((0, 2, 3), keepdim=True, unbiased=False).sqrt()
    assert torch.allclose(out[:4], standard[:4], atol=1e-4)
    assert torch.allclose(out[4:], 2 * standard[4:] + 5, atol=1e-4)
    assert torch.allclose(norm.statistics.running_mean, 0.5 * x.mean((0, 2, 3)), atol=1e-4)
    norm.eval()
    assert torch.allclose(norm(x[:1], torch.tensor([0])), norm(x, torch.tensor([0] * 8))[:1], atol=1e-6)


def test_shared_conditioning_predicts_gain_minus_one() -> None:
    norm = ConditionalBatchNorm(
        4, condition="shared", condition_dim=5, spectral_norm=EQUALITY, eps=1e-5, momentum=0.1, cross_replica=False
    )
    x = torch.randn(3, 4, 5, 5)
    plain = BatchNorm(4, eps=1e-5, momentum=0.1, cross_replica=False)
    assert torch.allclose(norm(x, torch.zeros(3, 5)), plain(x), atol=1e-6)


@pytest.mark.parametrize("version", ["V1", "V2", "V2+"])
@pytest.mark.parametrize("layout", ["spatial", "channel", "dual"])
@pytest.mark.parametrize("kind", ["NMF", "VQ", "CD"])
def test_every_hamburger_starts_as_identity_and_trains(kind: str, layout: str, version: str) -> None:
    torch.manual_seed(0)
    if layout == "dual" and version != "V2+":
        with pytest.raises(ValueError, match=r"ham\.layout is dual"):
            HamburgerConfig(kind=kind, layout=layout, version=version)  # type: ignore[arg-type]
        return
    config = HamburgerConfig(kind=kind, layout=layout, version=version, rank=3, num_sections=2, latent_channels=4)  # type: ignore[arg-type]
    block = Hamburger(6, 5, config, spectral_norm=EQUALITY, norm=None)
    x = torch.randn(2, 6, 5, 5)
    assert torch.equal(block(x), x)
    with torch.no_grad():
        block.gate.fill_(0.5)
    out = block(x)
    assert out.shape == x.shape and not torch.equal(out, x)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
    block.eval()
    assert torch.equal(block(x), block(x))


def test_sections_are_decomposed_apart() -> None:
    """Changing the second section's columns leaves the first section's reconstruction as it was."""
    config = HamburgerConfig(rank=2, num_sections=2, latent_channels=4)
    block = Hamburger(8, 4, config, spectral_norm=EQUALITY, norm=None).eval()
    h = torch.rand(2, 8, 4, 4)
    changed = h.clone()
    changed[:, 4:] = torch.rand(2, 4, 4, 4)
    first, second = block.reconstruct(h), block.reconstruct(changed)
    assert torch.equal(first[:, :4], second[:, :4]) and not torch.equal(first[:, 4:], second[:, 4:])


def test_stored_bases_can_be_replaced_for_one_batch_size() -> None:
    block = Hamburger(4, 4, HamburgerConfig(rank=2), spectral_norm=EQUALITY, norm=None).eval()
    with torch.no_grad():
        block.gate.fill_(1.0)
    x, bases = torch.randn(3, 4, 4, 4), torch.rand(3, 4, 5)
    expected = block(x, None, bases)
    block.store_bases(bases)
    assert torch.equal(block(x), expected)
    with pytest.raises(ValueError, match="multiple of the 3"):
        block(x[:2])
    with pytest.raises(ValueError, match="this ham needs"):
        block.store_bases(torch.rand(1, 7, 5))


def test_attention_starts_as_identity_and_mixes_all_pixels() -> None:
    torch.manual_seed(0)
    block = SelfAttention(16, spectral_norm=EQUALITY).eval()
    x = torch.randn(1, 16, 8, 8, requires_grad=True)
    assert torch.equal(block(x), x)
    with torch.no_grad():
        block.gate.fill_(1.0)
    (gradient,) = torch.autograd.grad(block(x)[0, :, 0, 0].sum(), x)
    far = gradient[0].abs().sum(0)[4:, 4:]
    assert (far > 0).sum() >= 4  # through the keys and values that pooling kept


def test_blocks_change_shape_as_named() -> None:
    def norm(channels: int) -> ConditionalBatchNorm:
        return ConditionalBatchNorm(
            channels,
            condition="per_class",
            condition_dim=2,
            spectral_norm=EQUALITY,
            eps=1e-5,
            momentum=0.1,
            cross_replica=False,
        )

    g = GBlock(6, 4, spectral_norm=EQUALITY, norm=norm)
    assert g(torch.randn(2, 6, 4, 4), torch.tensor([0, 1])).shape == (2, 4, 8, 8)
    d = DBlock(4, 6, hidden_channels=6, preactivation=True, downsampling=True, spectral_norm=EQUALITY)
    assert d(torch.randn(2, 4, 8, 8)).shape == (2, 6, 4, 4)
    same = DBlock(4, 4, hidden_channels=4, preactivation=True, downsampling=False, spectral_norm=EQUALITY)
    assert same.shortcut is None and same(torch.randn(2, 4, 8, 8)).shape == (2, 4, 8, 8)


@pytest.mark.parametrize("context", ["attention", "ham"])
def test_fast_context_blocks_can_be_differentiated_twice(context: str) -> None:
    """The gradient of a gradient (R1) through the fused form equals finite differences of the fused first derivative."""
    torch.manual_seed(0)
    if context == "attention":
        block: torch.nn.Module = SelfAttention(16, spectral_norm=EQUALITY).double().eval()
    else:
        block = Hamburger(8, 6, HamburgerConfig(rank=3), spectral_norm=EQUALITY, norm=None).double().eval()
    channels = 16 if context == "attention" else 8
    with torch.no_grad():
        block.gate.fill_(1.0)
    x, weight, direction = (torch.randn(2, channels, 6, 6, dtype=torch.float64) for _ in range(3))

    def slope(x: Tensor, create_graph: bool) -> Tensor:
        (gradient,) = torch.autograd.grad((block(x) * weight).sum(), x, create_graph=create_graph)
        return (gradient * direction).sum()

    leaf = x.clone().requires_grad_(True)
    once, twice = slope(leaf, False), slope(leaf, True)
    assert torch.allclose(once, twice, rtol=1e-9)
    (second,) = torch.autograd.grad(twice, leaf)
    if context == "attention":  # the ham's one-step gradient is no derivative, so finite differences do not see it
        moved = [slope((x + t * weight).requires_grad_(True), False) for t in (1e-5, -1e-5)]
        assert float((second * weight).sum()) == pytest.approx(float(moved[0] - moved[1]) / 2e-5, rel=1e-4)
    assert second.isfinite().all()


def test_attention_equals_the_plain_products() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, n, d, requires_grad=True) for n, d in ((36, 2), (9, 2), (9, 8))]
    weight = torch.randn(2, 36, 8)
    results = []
    for run in (lambda *x: differentiable_once(attend, attend_plainly, *x), attend_plainly):
        out = run(*inputs)
        results.append([out, *torch.autograd.grad((out * weight).sum(), inputs)])
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("tile", [2**21, 200, 7])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_attention_in_tiles_equals_the_exact_products(tile: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients in bfloat16 are no further from float64's than plain bfloat16 products, whatever the tile."""
    monkeypatch.setattr(tiles, "TILE", tile)
    torch.manual_seed(0)
    sizes = ((3, 30, 4), (3, 20, 4), (3, 20, 8))
    inputs = [(torch.randn(size) * scale**0.5).bfloat16().requires_grad_(True) for size in sizes[:2]]
    inputs.append(torch.randn(sizes[2]).bfloat16().requires_grad_(True))
    weight = torch.randn(3, 30, 8).bfloat16()
    exact = [x.detach().double().requires_grad_(True) for x in inputs]

    def derivatives(run: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
        out = run(*leaves)
        return [out, *torch.autograd.grad((out * weight).sum(), leaves)]

    wanted = derivatives(attend_plainly, exact)
    ours, plain = (derivatives(run, inputs) for run in (attend, attend_plainly))
    for found, other, one in zip(ours, plain, wanted, strict=True):
        assert relative_error(found.double(), one) < max(1.5 * relative_error(other.double(), one), 0.01)


def test_attention_in_tiles_survives_a_key_that_stands_out() -> None:
    """The shift of the scores comes from every eighth key; one of the others may have any score."""
    queries, keys, values = (
        torch.ones(1, 3, 2),
        torch.zeros(1, 16, 2),
        torch.arange(16.0).view(1, 16, 1).repeat(1, 1, 2),
    )
    keys[:, 5] = 300.0
    leaves = [x.bfloat16().requires_grad_(True) for x in (queries, keys, values)]
    out = attend(*leaves)
    assert torch.equal(out, torch.full((1, 3, 2), 5.0).bfloat16())
    out.sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in leaves)
    assert torch.equal(leaves[2].grad[0, :, 0], F.one_hot(torch.tensor(5), 16).bfloat16() * 3)


def test_attention_in_tiles_can_be_differentiated_twice_and_compiled() -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(1, n, d).bfloat16().requires_grad_(True) for n, d in ((16, 2), (4, 2), (4, 8))]
    firsts = []
    for run in (lambda *x: differentiable_once(attend, attend_plainly, *x), attend_plainly):
        first = torch.autograd.grad(run(*leaves).square().sum(), leaves, create_graph=True)
        firsts.append(torch.autograd.grad(sum(x.square().sum() for x in first), leaves))
    for ours, theirs in zip(*firsts, strict=True):
        assert relative_error(ours.float(), theirs.float()) < 0.05
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    results = [run(*leaves) for run in (attend, compiled)]
    gradients = [torch.autograd.grad(out.square().sum(), leaves) for out in results]
    assert torch.equal(*results) and all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    for operator, inputs in ((tiles._attend, leaves), (tiles._attend, [x.detach() for x in leaves])):
        torch.library.opcheck(operator, tuple(inputs))

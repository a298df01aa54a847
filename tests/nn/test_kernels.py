"""The compiled parts compute what torch's operations do, to their gradients' gradients, and are never needed."""

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import relative_error
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hamgan.nn import convolution_kernels, decomposition_kernels, kernel_library, kernels, tensor_kernels
from hamgan.nn.blocks import DBlock, GBlock
from hamgan.nn.convolution import conv2d, turn
from hamgan.nn.counter_random import uniform
from hamgan.nn.decomposition import NMF
from hamgan.nn.norm import BatchNorm, BatchStatistics, ConditionalBatchNorm
from hamgan.nn.recompute import recomputed
from hamgan.nn.resample import add_upsampled, downsample, relu_and_downsample, sum_windows
from hamgan.nn.spectral_norm import SNConv2d, SNEmbedding, SNLinear, SpectralNormConfig

SOURCE = Path(kernels.__file__).with_name("_kernels.c")
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
needs_compiler = pytest.mark.skipif(
    not COMPILERS or platform.machine() != "x86_64", reason="the C code is for x86-64, and takes a compiler"
)
pytestmark = needs_compiler
LAST = torch.channels_last
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def compile_to(path: Path, source: Path = SOURCE, compiler: str | None = None, *, optimized: bool = True) -> Path:
    command = [
        compiler or COMPILERS[0],
        "-O3" if optimized else "-O0",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-psabi",
        "-shared",
        "-fPIC",
    ]
    subprocess.run([*command, "-o", str(path), str(source)], check=True)
    return path


@pytest.fixture(scope="module", params=COMPILERS)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The library, compiled from the sources as they are now."""
    loaded = kernel_library.load(
        compile_to(tmp_path_factory.mktemp("c") / f"{request.param}.so", compiler=request.param)
    )
    if loaded is None:
        pytest.skip("this processor has no AVX2")
    return loaded


LEVELS = {"avx2": 1, "avx512": 2, "avx512_bf16": 3}


@pytest.fixture(autouse=True, params=list(LEVELS))
def library(
    request: pytest.FixtureRequest, compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ctypes.CDLL]:
    """The library with one set of instructions."""
    level = LEVELS[request.param]
    if compiled.hamgan_kernels_level() < level:
        pytest.skip(f"this processor has no {request.param}")
    compiled.hamgan_kernels_limit(level)
    monkeypatch.setattr(kernel_library, "library", lambda: compiled)
    monkeypatch.setattr(kernel_library, "level", lambda: level)
    yield compiled
    compiled.hamgan_kernels_limit(max(LEVELS.values()))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def derivatives(run: Callable[..., Tensor], inputs: list[Tensor], *, twice: bool = False) -> list[Tensor]:
    """Return a function's result and gradients, and where asked those of the gradients' squares, at the same inputs."""
    leaves = [tensor.detach().clone().requires_grad_(True) for tensor in inputs]
    out = run(*leaves)
    direction = torch.empty_like(out).copy_(
        normal(*out.shape, seed=9)
    )  # a map's in its layout, so that kernels take it
    found = [out.detach(), *torch.autograd.grad((out * direction).sum(), leaves, retain_graph=True)]
    if twice:
        first = torch.autograd.grad((out.square() * direction).sum(), leaves, create_graph=True)
        total = sum((gradient.square().sum() for gradient in first), torch.zeros(()))
        found += torch.autograd.grad(total, leaves)
    return found


def assert_same(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    """By norm: a value that is zero but for rounding may fall on either side of a ReLU."""
    for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert one.shape == other.shape
        assert (one.double() - other.double()).norm() < tolerance * other.double().norm(), place


def weights() -> dict[str, tuple[Callable[[SpectralNormConfig], nn.Module], torch.memory_format]]:
    return {
        "conv": (lambda config: SNConv2d(16, 32, 3, spectral_norm=config), LAST),
        "conv, odd": (lambda config: SNConv2d(3, 5, 3, spectral_norm=config), LAST),
        "conv, large": (lambda config: SNConv2d(130, 70, 3, spectral_norm=config), LAST),
        "conv, NCHW": (lambda config: SNConv2d(6, 20, 3, spectral_norm=config), torch.contiguous_format),
        "pointwise": (lambda config: SNConv2d(24, 17, 1, spectral_norm=config), LAST),
        "linear": (lambda config: SNLinear(129, 1, spectral_norm=config), torch.contiguous_format),
        "embedding": (lambda config: SNEmbedding(300, 33, spectral_norm=config), torch.contiguous_format),
    }


@pytest.mark.parametrize("side", ["output", "input"])
@pytest.mark.parametrize(("mode", "scale"), [("equality", 1.0), ("inequality", 0.01), ("inequality", 5.0)])
@pytest.mark.parametrize("name", list(weights()))
def test_spectral_norm(name: str, mode: str, scale: float, side: str) -> None:
    make, layout = weights()[name]
    torch.manual_seed(0)
    module = make(SpectralNormConfig(mode=mode, side=side)).to(memory_format=layout)  # type: ignore[arg-type]
    with torch.no_grad():
        module.weight.mul_(scale)
    start = module.spectral_norm.u.clone()

    def run(training: bool, held: bool, weight: Tensor) -> list[Tensor]:
        module.spectral_norm.u.copy_(start)
        module.train(training).spectral_norm.held = held
        found = derivatives(module.spectral_norm, [weight], twice=True)
        return [*found, module.spectral_norm.u.clone()]

    assert kernels.takes_weight(module.weight, start, torch.float32, on_rows=side == "output")
    for training, held in ((True, False), (False, False), (True, True)):
        ours = run(training, held, module.weight)
        with kernel_library.switched_off():
            theirs = run(training, held, module.weight)
        # Of second derivatives cancellation leaves fewer digits; the plain form in float32 has no more.
        assert_same(ours[:2] + ours[-1:], theirs[:2] + theirs[-1:], 2e-5)
        assert_same(ours[2:-1], theirs[2:-1], 1e-3)
        assert len(start) == 1 or torch.equal(ours[-1], start) == (held or not training)
        half = module.spectral_norm(module.weight, torch.bfloat16)
        assert half.dtype == torch.bfloat16 and half.stride() == module.weight.stride()


def test_a_repeated_block_takes_the_vectors_of_its_first_pass() -> None:
    torch.manual_seed(0)
    layer = SNConv2d(16, 16, 3, spectral_norm=SpectralNormConfig()).to(memory_format=LAST)
    start = layer.spectral_norm.u.clone()
    x = normal(2, 16, 8, 8).to(memory_format=LAST).requires_grad_(True)
    gradients = []
    for run in (layer, lambda x: recomputed(layer, x)):
        layer.spectral_norm.u.copy_(start)
        out = run(x)
        after = layer.spectral_norm.u.clone()
        gradients.append(torch.autograd.grad(out.square().sum(), (x, layer.weight)))
        assert torch.equal(layer.spectral_norm.u, after)
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


SHAPES = [(2, 16, 5, 7), (4, 32, 16, 16), (3, 48, 1, 1), (2, 96, 33, 31), (8, 256, 4, 4), (5, 400, 6, 6)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kind", ["bare", "shared", "each"])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm(shape: tuple[int, ...], kind: str, relu: bool, dtype: torch.dtype) -> None:
    """Channels far from zero too, where the difference of sums of squares has no digits left."""
    batch, channels = shape[:2]
    far = torch.arange(channels)[:, None, None] % 7
    x = (normal(*shape) * (1 + far) + 30 * far).to(dtype).to(memory_format=LAST)
    affine = {"bare": [], "shared": [normal(channels, seed=s) for s in (1, 2)]}
    affine["each"] = [normal(batch, channels, seed=s) for s in (1, 2)]
    gain_and_bias = affine[kind]

    def run(training: bool, wide: bool) -> list[Tensor]:
        layer = BatchStatistics(channels, eps=1e-5, momentum=0.3, cross_replica=True).train(training)
        layer.running_mean += 1.0
        inputs = [x, *gain_and_bias]
        if wide:
            layer, inputs = layer.double(), [tensor.double() for tensor in inputs]
        else:
            assert kernels.takes_map(x)
        # Its sums are not the gradients' own: behind a ReLU few values decide, and a bfloat16 one may be rounded to zero.
        found = derivatives(
            lambda x, gain=None, bias=None: layer(x, gain, bias, relu), inputs, twice=dtype != torch.bfloat16
        )
        return [*found, layer.running_mean, layer.running_var]

    for training in (True, False):
        if training and shape[0] * shape[2] * shape[3] < 8:
            continue  # of three values a channel nothing is left of second derivatives
        ours, exact = run(training, wide=False), run(training, wide=True)
        first = 2 + len(gain_and_bias)
        exact = exact[:first] + exact[len(exact) - (len(ours) - first) :]
        assert_same(ours[:first] + ours[-2:], exact[:first] + exact[-2:], TOLERANCE[dtype])
        assert_same(ours[first:-2], exact[first:-2], 2e-3)


def test_running_statistics_stay_when_a_block_is_repeated() -> None:
    layer = BatchNorm(16, eps=1e-5, momentum=0.1, cross_replica=False)
    x = normal(2, 16, 4, 4).to(memory_format=LAST).requires_grad_(True)
    out = recomputed(layer, x)
    before = layer.statistics.running_mean.clone()
    out.square().sum().backward()
    assert before.abs().sum() > 0 and torch.equal(layer.statistics.running_mean, before)


def test_what_is_not_a_number_stays_so() -> None:
    """A ReLU hides none, nor does rounding: else a run that has broken would look whole."""
    x = normal(2, 16, 4, 4).to(memory_format=LAST)
    x[1, 3, 2, 2] = float("nan")
    for dtype in (torch.float32, torch.bfloat16):
        layer = BatchNorm(16, eps=1e-5, momentum=0.1, cross_replica=False)
        found = layer(x.to(dtype), relu=True).isnan().any(0).any(1).any(1)
        assert found.tolist() == [channel == 3 for channel in range(16)]
        positive, pooled = relu_and_downsample(x.to(dtype))
        assert positive.isnan().sum() == 1 and pooled.isnan().sum() == 1
    for mode in ("equality", "inequality"):
        linear = SNLinear(16, 16, spectral_norm=SpectralNormConfig(mode=mode))  # type: ignore[arg-type]
        weight = normal(16, 16).requires_grad_(True)
        (gradient,) = torch.autograd.grad(linear.spectral_norm(weight * torch.tensor(float("nan"))).sum(), weight)
        assert gradient.isnan().all()
        with torch.no_grad():
            weight[3, 4] = float("nan")
        assert linear.spectral_norm(weight, torch.bfloat16).isnan().all()
    weight, bias = normal(16, 16, 3, 3, seed=1), normal(16, seed=2)
    ours = derivatives(lambda *inputs: conv2d(*inputs, padding=1, relu=True), [x, weight, bias])
    with kernel_library.switched_off():
        theirs = derivatives(lambda *inputs: conv2d(*inputs, padding=1, relu=True), [x, weight, bias])
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.isnan(), other.isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 16, 6, 10), (3, 3, 8, 8), (1, 20, 2, 4), (8, 64, 32, 32)])
def test_pooling_and_upsampling(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    x = normal(*shape, dtype=dtype).to(memory_format=LAST)
    low = normal(shape[0], shape[1], shape[2] // 2, shape[3] // 2, seed=1, dtype=dtype).to(memory_format=LAST)
    runs: list[tuple[Callable[..., Tensor], list[Tensor]]] = [
        (downsample, [x]),
        (lambda x: torch.cat([part.flatten() for part in relu_and_downsample(x)]), [x]),
        (lambda x: relu_and_downsample(x)[0], [x]),
        (lambda x: relu_and_downsample(x)[1], [x]),
        (lambda h, low: add_upsampled(h * 1, low), [x, low]),
    ]
    assert kernels.takes_pooling(x)
    for run, inputs in runs:
        ours = derivatives(run, inputs, twice=True)
        with kernel_library.switched_off():
            theirs = derivatives(run, inputs, twice=True)
        assert_same(ours, theirs, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", [(2, 16, 6, 11), (1, 32, 2, 2), (4, 48, 33, 33)])
def test_sums_over_windows(shape: tuple[int, int, int, int], padded: bool, dtype: torch.dtype) -> None:
    x = normal(*shape, dtype=dtype).to(memory_format=LAST)
    shift = normal(shape[1], seed=1)
    runs: list[tuple[Callable[..., Tensor], list[Tensor]]] = [
        (lambda x: sum_windows(x, 0.25, padded=padded), [x]),
        (lambda x: sum_windows(x, 0.25, padded=padded, relu=True), [x]),
        (lambda x, shift: sum_windows(x, 1.0, padded=padded, after=shift), [x, shift]),
        (lambda x, shift: sum_windows(x, 0.25, padded=padded, before=shift, relu=True), [x, shift]),
    ]
    assert kernels.takes_map(x)
    for run, inputs in runs:
        ours = derivatives(run, inputs, twice=True)
        with kernel_library.switched_off():
            theirs = derivatives(run, [tensor.double() for tensor in inputs], twice=True)
        assert_same(ours[: 1 + len(inputs)], theirs[: 1 + len(inputs)], TOLERANCE[dtype])
        assert_same(ours[1 + len(inputs) :], theirs[1 + len(inputs) :], 4 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(16, 32, 3, 3), (5, 3, 3, 3), (40, 70, 3, 3)])
def test_kernels_of_transposed_convolutions(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    weight = normal(*shape, dtype=dtype).to(memory_format=LAST)
    ours = derivatives(turn, [weight], twice=True)
    with kernel_library.switched_off():
        theirs = derivatives(turn, [weight], twice=True)
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[0], weight.flip(2, 3).transpose(0, 1))
    assert_same(ours, theirs, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("channels", [16, 48, 3])
def test_convolutions_give_bias_and_relu_their_gradients(channels: int, relu: bool, dtype: torch.dtype) -> None:
    x = normal(2, 5, 9, 8, dtype=dtype).to(memory_format=LAST)
    inputs = [x, normal(channels, 5, 3, 3, seed=1, dtype=dtype).to(memory_format=LAST), normal(channels, seed=2)]

    def plainly(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = F.conv2d(x, weight, bias, padding=1)
        return F.relu(out) if relu else out

    ours = derivatives(lambda *inputs: conv2d(*inputs, padding=1, relu=relu), inputs, twice=True)
    exact = derivatives(plainly, [tensor.double() for tensor in inputs], twice=True)
    assert_same(ours[: 1 + len(inputs)], exact[: 1 + len(inputs)], TOLERANCE[dtype])
    assert_same(ours[1 + len(inputs) :], exact[1 + len(inputs) :], 4 * TOLERANCE[dtype])


CONVOLUTIONS = [  # batch, c_in, c_out, height, width, k, whether strided (2), spread
    (2, 16, 16, 8, 8, 3, False, False),
    (1, 3, 16, 8, 12, 3, False, False),
    (2, 16, 3, 9, 7, 3, False, False),
    (1, 2, 4, 5, 5, 3, False, False),
    (3, 64, 64, 4, 4, 3, False, False),
    (2, 32, 48, 4, 5, 3, False, False),
    (5, 16, 16, 40, 64, 3, False, False),
    (2, 5, 7, 6, 5, 3, False, False),
    (1, 48, 80, 20, 20, 3, False, False),
    (2, 17, 40, 6, 6, 3, False, False),
    (2, 33, 64, 4, 4, 1, False, False),
    (2, 19, 16, 7, 7, 3, True, False),
    (1, 16, 16, 1, 1, 3, False, False),
    (2, 32, 64, 8, 8, 1, False, False),
    (2, 3, 16, 5, 8, 1, False, False),
    (2, 16, 32, 9, 9, 3, True, False),
    (2, 32, 32, 17, 33, 3, True, False),
    (20, 64, 64, 5, 5, 3, True, False),
    (2, 7, 5, 3, 3, 3, True, False),
    (2, 16, 16, 4, 4, 3, False, True),
    (2, 64, 32, 4, 7, 3, False, True),
    (1, 3, 5, 1, 2, 3, False, True),
    (2, 64, 16, 64, 64, 3, False, True),
]


@pytest.mark.parametrize("library", ["avx512_bf16"], indirect=True)
@pytest.mark.parametrize("sizes", CONVOLUTIONS)
def test_convolutions_of_bfloat16(sizes: tuple[int, int, int, int, int, int, bool, bool]) -> None:
    batch, c_in, c_out, height, width, k, strided, spread = sizes
    stride, padding = (2, 0) if strided else (1, 0 if spread else k // 2)
    half = torch.bfloat16
    x = normal(batch, c_in, height, width, dtype=half).to(memory_format=LAST)
    weight = normal(c_out, c_in, k, k, seed=1, dtype=half).to(memory_format=LAST)
    bias = normal(c_out, seed=2, dtype=half).float()
    assert convolution_kernels.takes_convolution(x, weight, bias, stride, padding, spread=spread)
    for relu in (False, True):

        def plainly(x: Tensor, weight: Tensor, bias: Tensor, relu: bool = relu) -> Tensor:
            if spread:
                out = F.conv_transpose2d(x, weight.flip(2, 3).transpose(0, 1), bias, stride=2)
            else:
                out = F.conv2d(x, weight, bias, stride=stride, padding=padding)
            return F.relu(out) if relu else out

        def ours(x: Tensor, weight: Tensor, bias: Tensor, relu: bool = relu) -> Tensor:
            return conv2d(x, weight, bias, stride=stride, padding=padding, spread=spread, relu=relu)

        found = derivatives(ours, [x, weight, bias], twice=True)
        exact = derivatives(plainly, [tensor.double() for tensor in (x, weight, bias)], twice=True)
        assert found[0].is_contiguous(memory_format=LAST) and found[2].stride() == weight.stride()
        # One rounding to 8 bits; of gradients also that of the direction, and at ReLUs values that it moves over zero.
        assert_same(found[:1], exact[:1], 3e-3)
        assert_same(found[1:4], exact[1:4], 8e-3)
        assert_same(found[4:], exact[4:], 0.05)


@pytest.mark.parametrize("library", ["avx512_bf16"], indirect=True)
def test_convolutions_are_of_each_image_alone_and_keep_what_is_not_a_number() -> None:
    x = normal(3, 16, 10, 8, dtype=torch.bfloat16).to(memory_format=LAST)
    weight = normal(16, 16, 3, 3, seed=1, dtype=torch.bfloat16).to(memory_format=LAST)
    out = conv2d(x, weight, None, padding=1, relu=True)
    assert torch.equal(conv2d(x[1:2], weight, None, padding=1, relu=True), out[1:2])
    x[1, 0, 4, 4] = float("nan")
    ruined = conv2d(x, weight, None, padding=1, relu=True)
    assert ruined[1, :, 3:6, 3:6].isnan().all() and ruined.isnan().sum() == 16 * 9
    assert torch.equal(ruined[[0, 2]], out[[0, 2]])


@pytest.mark.parametrize("library", ["avx512_bf16"], indirect=True)
def test_convolutions_that_torch_refuses_are_left_to_it() -> None:
    x = normal(1, 16, 1, 1, dtype=torch.bfloat16).to(memory_format=LAST)
    weight = normal(16, 16, 3, 3, dtype=torch.bfloat16).to(memory_format=LAST)
    with pytest.raises(RuntimeError, match="size"):
        conv2d(x, weight, None, stride=2)
    with pytest.raises(RuntimeError):
        conv2d(x, weight, torch.ones(3), padding=1)


def tensors(seed: int = 0) -> list[Tensor]:
    shapes = [(5,), (1,), (40, 30, 3, 3), (3, 70000), (16, 8, 3, 3)]
    made = [normal(*shape, seed=seed + place) for place, shape in enumerate(shapes)]
    made[2] = made[2].to(memory_format=LAST)
    return made


def test_norm_of_tensors() -> None:
    assert tensor_kernels.takes_list(tensors())
    expected = torch.cat([tensor.double().flatten() for tensor in tensors()]).norm()
    assert abs(float(tensor_kernels.total_norm(tensors())) / float(expected) - 1) < 1e-6
    assert tensor_kernels.total_norm([torch.tensor([1.0, float("nan")])]).isnan()
    assert not tensor_kernels.takes_list([]) and not tensor_kernels.takes_list([normal(4, 6)[:, ::2]])


@pytest.mark.parametrize("weight", [0.0, 0.001, 0.7, 1.0])
def test_moving_tensors_towards_others(weight: float) -> None:
    targets, sources = tensors(), tensors(seed=10)
    expected = [one.lerp(other, weight) for one, other in zip(targets, sources, strict=True)]
    assert tensor_kernels.takes_pairs(targets, sources)
    version = targets[0]._version
    tensor_kernels.lerp(targets, sources, weight)
    assert targets[0]._version > version
    for ours, theirs in zip(targets, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7)
        assert weight < 1 or torch.equal(ours, theirs)
    assert not tensor_kernels.takes_pairs(
        targets, [tensor.clone(memory_format=torch.contiguous_format) for tensor in sources]
    )


@pytest.mark.parametrize("count", [1, 16, 37, 2048])
def test_random_numbers_are_those_of_every_device(count: int) -> None:
    keys = torch.tensor([0, 1, -1, 2**40 + 7, -(2**63), 2**63 - 1])
    ours = uniform(keys, count)
    with kernel_library.switched_off():
        assert torch.equal(ours, uniform(keys, count))


@pytest.mark.parametrize("library", ["avx512"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "sizes", [(2, 16, 64, 8), (3, 17, 37, 5), (2, 64, 1024, 32), (1, 192, 700, 24), (2, 40, 300, 64), (2, 1, 5, 48)]
)
def test_nmf(sizes: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """Ranks that fill no vector, and pixels that fill no part; against the same steps in float64."""
    batch, dim, num_pixels, rank = sizes
    x = normal(batch, num_pixels, dim).abs().to(dtype).transpose(1, 2)
    start = normal(batch, dim, rank, seed=1).abs()
    direction, other = (normal(batch, num_pixels, dim, seed=s).to(dtype).transpose(1, 2) for s in (2, 3))
    assert decomposition_kernels.takes_columns(x, rank)
    for steps in (0, 1, 6):
        ham = NMF(dim, rank, train_steps=steps)
        with torch.no_grad():
            found = ham._find(x, start)
            exact = ham._find(x.double(), start.double())
        assert_same(list(found), list(exact), 1e-4)
        results = []
        for double in (False, True):
            tensors = [tensor.double() if double else tensor for tensor in (x, start, direction, other)]
            leaf, weights = (tensor.detach().requires_grad_(True) for tensor in tensors[::2])
            out = ham(leaf, tensors[1])
            assert out.stride() == leaf.stride() and out.dtype == leaf.dtype
            (gradient,) = torch.autograd.grad(out, leaf, weights, create_graph=True)
            results.append([out, gradient, *torch.autograd.grad(gradient, weights, tensors[3])])
        assert_same(*results, tolerance=1e-4 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("library", ["avx512"], indirect=True)
def test_nmf_takes_a_map_that_lies_between_others() -> None:
    """Samples of a part of a batch lie apart by more than their own length."""
    x, start = normal(4, 50, 16).abs()[::2].transpose(1, 2), normal(2, 16, 8).abs()
    assert decomposition_kernels.takes_columns(x, 8)
    ham = NMF(16, 8)
    assert torch.equal(ham(x, start), ham(x.transpose(1, 2).contiguous().transpose(1, 2), start))


def step_gradients(threads: int) -> list[Tensor]:
    """Gradients of a block of each network, which use all kernels but the decomposition's."""
    torch.manual_seed(0)
    config = SpectralNormConfig()

    def norm(channels: int) -> ConditionalBatchNorm:
        return ConditionalBatchNorm(
            channels,
            condition="shared",
            condition_dim=8,
            spectral_norm=config,
            eps=1e-5,
            momentum=0.1,
            cross_replica=False,
        )

    g = GBlock(64, 32, spectral_norm=config, norm=norm).to(memory_format=LAST)
    d = DBlock(*(32, 64), hidden_channels=64, preactivation=True, downsampling=True, spectral_norm=config).to(
        memory_format=LAST
    )
    x = normal(4, 64, 16, 16).to(memory_format=LAST).requires_grad_(True)
    torch.set_num_threads(threads)
    out = d(g(x, normal(4, 8)))
    # The bias before a batch norm has no effect, and a gradient of rounding errors.
    parameters = [value for name, value in g.named_parameters() if name != "conv1.bias"]
    return [out, *torch.autograd.grad(out.sin().sum(), [x, *parameters, *d.parameters()])]


def test_results_do_not_depend_on_threads_and_equal_torchs() -> None:
    before = torch.get_num_threads()
    try:
        results = [step_gradients(threads) for threads in (1, 2)]
        with kernel_library.switched_off():
            plain = step_gradients(1)
    finally:
        torch.set_num_threads(before)
    assert_same(*results, tolerance=2e-5)  # the convolutions between are torch's
    assert_same(results[0], plain, 5e-5)


def test_each_kernel_gives_the_same_bits_with_any_number_of_threads(library: ctypes.CDLL) -> None:
    x, grad = (normal(4, 32, 40, 40, seed=s).to(memory_format=LAST) for s in (0, 1))
    gain, weight = normal(4, 32, seed=2), normal(200, 300, seed=3)

    def run() -> list[Tensor]:
        moments = kernels.norm_moments(x, None, 0.1)
        y, scales = kernels.norm_apply(x, moments, 1e-5, gain, gain, relu=True)
        dgain, dbias, totals = kernels.norm_gradient_sums(grad, x, moments, 1e-5, gain, scales, relu=True)
        dx = kernels.norm_gradient(grad, x, moments, 1e-5, scales, totals, 6400, relu=True)
        u, found = normal(200, seed=4), torch.empty(502)
        out = kernels.spectral_norm(
            weight, u, found, on_rows=True, advance=2, eps=1e-6, smallest=0.0, dtype=torch.float32
        )
        back = kernels.spectral_norm_gradient(normal(200, 300, seed=5), weight, found, 0.0)
        results = [moments, y, dgain, dbias, totals, dx, u, found, out, back, *kernels.channel_sums(grad, y)]
        sums = kernels.windows(x, 0.25, padded=True, before=gain[0], relu=True)
        results += [sums, *kernels.windows_gradient(sums, 0.25, padded=True, before=gain[0], value=x)]
        if kernel_library.level() >= 3:
            half, kernel = x.bfloat16(), normal(48, 32, 3, 3, seed=7, dtype=torch.bfloat16).to(memory_format=LAST)
            for stride, padding, spread, of in (
                (1, 1, False, half),
                (2, 0, False, half[..., :39, :39]),
                (1, 0, True, half),
            ):
                taken = of.contiguous(memory_format=LAST)
                assert convolution_kernels.takes_convolution(taken, kernel, None, stride, padding, spread=spread)
                place: dict[str, Any] = {"stride": stride, "padding": padding, "spread": spread}
                made = convolution_kernels.convolve(taken, kernel, gain[0, :1].expand(48), relu=False, **place)
                of_x, of_kernel = convolution_kernels.convolve_gradient(made, taken, kernel, (True, True), **place)
                assert of_x is not None and of_kernel is not None
                results += [made, of_x, of_kernel]
        results.append(tensor_kernels.total_norm([x, weight]))
        if kernel_library.level() >= 2:
            columns = x.abs().flatten(2)
            bases, coef = decomposition_kernels.nmf(columns, normal(4, 32, 20, seed=6).abs(), 3, inv_t=1.0, eps=1e-6)
            results += [bases, coef, *decomposition_kernels.nmf_project(columns, bases, coef=coef, eps=1e-6)]
        return results

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run()
        for threads in (2, 3, 7):
            torch.set_num_threads(threads)
            assert all(torch.equal(one, other) for one, other in zip(alone, run(), strict=True)), threads
    finally:
        torch.set_num_threads(before)


def test_threads_are_torchs_own(library: ctypes.CDLL) -> None:
    """The kernels begin none: a process that has used them has as many threads as torch alone has begun."""
    x = normal(8, 64, 64, 64).to(memory_format=LAST)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        x.exp()  # torch's threads are there now
        count = len(os.listdir("/proc/self/task"))
        kernels.norm_moments(x, None, 0.1)
        assert len(os.listdir("/proc/self/task")) == count
    finally:
        torch.set_num_threads(before)


def test_gradients_that_lie_otherwise_are_put_in_order() -> None:
    """Those of a part of a concatenation, or of every second sample, have the strides of channels_last, and gaps."""
    layer = BatchNorm(16, eps=1e-5, momentum=0.1, cross_replica=False)
    x = normal(4, 16, 6, 6).to(memory_format=LAST)
    other = normal(4, 16, 6, 6, seed=1).to(memory_format=LAST)
    runs: list[Callable[[Tensor], Tensor]] = [
        lambda x: torch.cat([layer(x, relu=True), other], 1),
        lambda x: torch.stack([layer(x, relu=True), other], 1),
        lambda x: layer(x).sum((2, 3)),
        lambda x: torch.cat([downsample(x), other[:, :, :3, :3]], 1),
        lambda x: torch.cat([*relu_and_downsample(x)[:1], other], 1),
        lambda x: torch.cat([add_upsampled(other * 1, x[:, :, :3, :3].contiguous(memory_format=LAST)), other], 1),
    ]
    for run in runs:
        ours = derivatives(run, [x])
        with kernel_library.switched_off():
            theirs = derivatives(run, [x])
        assert_same(ours, theirs, 2e-5)


def test_a_convolution_in_another_layout_than_its_gradient() -> None:
    inputs = [normal(2, 5, 8, 8), normal(16, 5, 3, 3, seed=1), normal(16, seed=2)]

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = conv2d(x, weight, bias, padding=1, relu=True)
        return out.contiguous(memory_format=LAST) * normal(*out.shape, seed=3).to(memory_format=LAST)

    ours = derivatives(run, inputs)
    with kernel_library.switched_off():
        assert_same(ours, derivatives(run, inputs), 2e-5)


def test_what_does_not_fit_is_torchs_to_broadcast_or_refuse() -> None:
    x = normal(4, 16, 6, 6).to(memory_format=LAST)

    def layer(channels: int = 16) -> BatchStatistics:
        return BatchStatistics(channels, eps=1e-5, momentum=0.1, cross_replica=False)

    one = normal(1, 16, seed=1)
    assert_same([layer()(x, one, one)], [layer()(x, one.expand(4, -1).clone(), one.expand(4, -1).clone())], 1e-6)
    each = normal(4, 16, seed=2)
    assert layer().eval()(x[:1], each, each).shape == x.shape
    for module, map_ in ((layer(32), x), (layer(8), x), (layer(), x[:1, :, :1, :1])):
        with pytest.raises((RuntimeError, ValueError)):
            module(map_)
    half = layer().bfloat16()
    assert half(x.bfloat16()).dtype == half.running_mean.dtype == torch.bfloat16
    for low in (normal(4, 16, 2, 2), normal(4, 16, 1, 1), normal(4, 8, 3, 3)):
        with pytest.raises(RuntimeError):
            add_upsampled(x.clone(memory_format=LAST), low.to(memory_format=LAST))
    low = normal(4, 16, 3, 3).to(memory_format=LAST)
    assert_same([add_upsampled(torch.zeros_like(x), low.bfloat16())], [F.interpolate(low, scale_factor=2)], 1e-2)
    norm = SNLinear(16, 8, spectral_norm=SpectralNormConfig()).eval().spectral_norm
    with pytest.raises(RuntimeError):
        norm(normal(9, 16))


def test_buffers_do_not_follow_torchs_defaults() -> None:
    x, layer = normal(2, 16, 4, 4).to(memory_format=LAST), SNLinear(16, 8, spectral_norm=SpectralNormConfig())
    expected = [downsample(x), layer.eval().spectral_norm(layer.weight)]
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert_same([downsample(x), layer.spectral_norm(layer.weight)], expected, 1e-6)
    finally:
        torch.set_default_dtype(torch.float32)


def test_buffers_that_are_written_say_so() -> None:
    layer, norm = (
        SNLinear(16, 8, spectral_norm=SpectralNormConfig()),
        BatchNorm(16, eps=1e-5, momentum=0.1, cross_replica=False),
    )
    buffers = [layer.spectral_norm.u, norm.statistics.running_mean, norm.statistics.running_var]
    before = [buffer._version for buffer in buffers]
    layer(normal(2, 16))
    norm(normal(2, 16, 4, 4).to(memory_format=LAST))
    assert all(buffer._version > version for buffer, version in zip(buffers, before, strict=True))


@pytest.mark.parametrize("library", ["avx512"], indirect=True)
def test_nmf_of_more_bases_than_are_taken_widens_the_map() -> None:
    x, start = normal(2, 50, 16).abs().bfloat16().transpose(1, 2), normal(2, 16, 70).abs()
    ham = NMF(16, 8)
    assert_same([ham(x, start)], [ham(x.float(), start)], 1e-2)
    assert_same(list(ham.decompose(x, start)), list(ham.decompose(x.float(), start)), 1e-6)


def test_what_they_do_not_take_is_left_to_torch(library: ctypes.CDLL) -> None:
    x = normal(2, 16, 4, 4)
    last = x.to(memory_format=LAST)
    assert kernels.takes_map(last) and kernels.takes_pooling(last)
    assert not kernels.takes_map(x) and not kernels.takes_map(last.double()) and not kernels.takes_map(last[:, :8])
    assert (
        not kernels.takes_map(last.half()) and not kernels.takes_map(last.to("meta")) and not kernels.takes_map(x[:0])
    )
    assert not kernels.takes_pooling(normal(2, 16, 3, 4).to(memory_format=LAST))
    u = normal(4)
    assert kernels.takes_weight(normal(4, 6), u, torch.float32, on_rows=True)
    assert not kernels.takes_weight(normal(4, 6), u, torch.float32, on_rows=False)
    assert not kernels.takes_weight(normal(4, 6), u, torch.float16, on_rows=True)
    assert not kernels.takes_weight(normal(6, 4).t(), u, torch.float32, on_rows=True)
    assert not kernels.takes_weight(normal(4, 6), u.double(), torch.float32, on_rows=True)
    assert not decomposition_kernels.takes_columns(x.flatten(2), 8) and not decomposition_kernels.takes_columns(
        last.flatten(2), 65
    )
    with FakeTensorMode():
        assert not kernels.takes_map(torch.empty(2, 16, 4, 4).to(memory_format=LAST))
    with kernel_library.switched_off():
        assert not kernels.takes_map(last)


@pytest.mark.parametrize("library", ["avx2"], indirect=True)
def test_a_library_of_another_version_is_not_used(tmp_path: Path) -> None:
    for header in SOURCE.parent.glob("_*.h"):
        shutil.copy(header, tmp_path)
    other = tmp_path / "other.c"
    text = SOURCE.read_text()
    other.write_text(text.replace("_version(void) { return ", "_version(void) { return 1"))
    assert other.read_text() != text
    assert kernel_library.load(compile_to(tmp_path / "other.so", other, optimized=False)) is None
    (tmp_path / "empty.c").write_text("int nothing;")
    assert kernel_library.load(compile_to(tmp_path / "empty.so", tmp_path / "empty.c")) is None
    (tmp_path / "text.so").write_text("hello")
    assert kernel_library.load(tmp_path / "text.so") is None and kernel_library.load(tmp_path / "absent.so") is None


def test_without_a_library_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = SNConv2d(16, 16, 3, spectral_norm=SpectralNormConfig()).eval()
    expected = layer(normal(1, 16, 4, 4))
    monkeypatch.setattr(kernel_library, "library", lambda: None)
    assert relative_error(layer(normal(1, 16, 4, 4)), expected) < 1e-6

"""Matrix decompositions against the paper's code, and the properties that training relies on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import load_arrays, relative_error

from hamgan.nn import decomposition
from hamgan.nn.decomposition import CD, NMF, VQ, MatrixDecomposition

KINDS = {"NMF": NMF, "VQ": VQ, "CD": CD}
Find = Callable[[str], Path]


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("layout", ["spatial", "channel"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_papers_code(reference: Find, kind: str, layout: str, mode: str) -> None:
    arrays = load_arrays(reference("hamburger.npz"))
    x, bases, y, dy, dx = (arrays[f"{kind}.{layout}.{mode}.{name}"] for name in ("x", "bases", "y", "dy", "dx"))
    ham = KINDS[kind](rank=4).train(mode == "train")
    x.requires_grad_(True)
    columns = x.flatten(2) if layout == "spatial" else x.flatten(2).transpose(1, 2)
    out = ham(columns, bases)
    out = (out if layout == "spatial" else out.transpose(1, 2)).reshape(x.shape)
    out.backward(dy)
    assert relative_error(out, y) < 1e-5
    assert relative_error(x.grad, dx) < 1e-5


def positive(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_the_one_step_gradient_holds_the_iterates_constant(kind: str) -> None:
    """Differentiating the last update alone, by hand, gives the layer's gradient; the unrolled one differs."""
    x = positive(0, 2, 8, 20).double().requires_grad_(True)
    bases = torch.nn.functional.normalize(positive(1, 2, 8, 3).double(), dim=1)
    weight = positive(2, 2, 8, 20).double()
    ham = KINDS[kind](rank=3, gradient="one_step")
    (one_step,) = torch.autograd.grad((ham(x, bases) * weight).sum(), x)

    with torch.no_grad():
        found, coef = ham._iterate(x, ham._checked_bases(x, bases))
    (by_hand,) = torch.autograd.grad(
        (torch.bmm(found, ham.last_coef(x, found, coef).transpose(1, 2)) * weight).sum(), x
    )
    assert relative_error(one_step, by_hand) < 1e-13

    unrolled = KINDS[kind](rank=3, gradient="unrolled")
    (through_all,) = torch.autograd.grad((unrolled(x, bases) * weight).sum(), x)
    assert relative_error(through_all, one_step) > 1e-3


def test_nmf_keeps_bases_and_a_number_a_code_for_the_backward_pass() -> None:
    x = positive(12, 2, 24, 100).requires_grad_(True)
    kept: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.setdefault(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()), t)[1], lambda t: t
    ):
        out = NMF(24, 4)(x)
    assert out.requires_grad
    assert sum(kept.values()) == 4 * 2 * 4 * (24 + 100)


@pytest.mark.parametrize("channels_last", [False, True])
def test_nmf_can_be_differentiated_twice(channels_last: bool) -> None:
    """What R1 needs; the map is linear once the iterates are held constant, so its numeric derivatives are exact."""
    bases, scale = positive(13, 2, 5, 3).double(), positive(14, 2, 7, 3).double()
    x = positive(15, 2, 7, 5).double().transpose(1, 2) if channels_last else positive(15, 2, 5, 7).double()
    x.requires_grad_(True)

    def squared(x: torch.Tensor) -> torch.Tensor:
        return decomposition._rescaled_projection(x, bases, scale).square()

    assert torch.autograd.gradcheck(squared, x)
    assert torch.autograd.gradgradcheck(squared, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gradient", ["one_step", "unrolled"])
def test_the_output_has_the_inputs_layout(kind: str, gradient: str) -> None:
    """A channels_last map's columns come back so, with the same numbers: nothing is copied on the way to the next layer."""
    x, bases = positive(16, 2, 8, 6, 6), positive(17, 1, 8, 3)
    ham = KINDS[kind](8, 3, gradient=gradient)  # type: ignore[arg-type]
    plain = ham(x.flatten(2), bases).reshape(x.shape)
    last = ham(x.to(memory_format=torch.channels_last).flatten(2), bases).reshape(x.shape)
    assert plain.is_contiguous() and last.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(last, plain) < (1e-6 if kind == "NMF" else 1e-4)


@pytest.mark.parametrize(
    "kind", ["NMF", "CD"]
)  # VQ's last assignment holds the norm of x constant: no derivative by design
def test_the_unrolled_gradient_is_the_derivative(kind: str) -> None:
    ham = KINDS[kind](rank=2, train_steps=3, gradient="unrolled", inv_t=5.0)
    x, bases = positive(3, 1, 4, 6) + 0.1, positive(4, 1, 4, 2) + 0.1
    direction = positive(5, 1, 4, 6)

    def value(t: float) -> float:
        moved = x.double() + t * direction.double()
        with torch.no_grad():
            found, coef = ham._iterate(moved, bases.double())
            return float(torch.bmm(found, ham.last_coef(moved, found, coef).transpose(1, 2)).square().sum())

    numeric = (value(1e-6) - value(-1e-6)) / 2e-6
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(ham(leaf, bases).square().sum(), leaf)
    assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-20, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gradient", ["one_step", "unrolled"])
def test_nmf_stays_finite(value: float, gradient: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    one_pixel = torch.zeros(2, 16, 64).index_fill(2, torch.tensor([3]), value)
    for x in (torch.full((2, 16, 64), value), torch.rand(2, 16, 64) * value, one_pixel):
        x = x.to(dtype).requires_grad_(True)
        out = NMF(16, 4, gradient=gradient)(x)  # type: ignore[arg-type]
        out.sum().backward()
        assert out.isfinite().all() and x.grad.isfinite().all()


def test_nmf_stays_float32_under_autocast() -> None:
    x = positive(6, 2, 16, 32)
    ham = NMF(16, 4).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ham(x), ham(x.float()))
        assert ham(x.bfloat16()).dtype == torch.bfloat16
    unrolled = NMF(16, 4, gradient="unrolled").eval()
    assert torch.equal(unrolled(x.bfloat16()), unrolled(x.bfloat16().float()).bfloat16())


def test_nmf_of_bfloat16_takes_its_steps_in_float32() -> None:
    """With the one-step gradient only what follows is in bfloat16: four roundings, of bases, scale, codes and result."""
    x, direction = positive(6, 2, 64, 256).bfloat16(), positive(8, 2, 64, 256).bfloat16()
    bases = positive(7, 2, 64, 16)
    ham = NMF(64, 16)
    results = []
    for leaf in (x.detach(), x.double(), x.float()):
        out = ham(leaf.requires_grad_(True), bases.to(leaf.dtype if leaf.dtype == torch.float64 else torch.float32))
        (gradient,) = torch.autograd.grad((out * direction).sum(), leaf)
        results.append([out, gradient])
    for ours, exact, single in zip(*results, strict=True):
        rounded = relative_error(single.detach().bfloat16().double(), exact.detach())
        assert relative_error(ours.detach().double(), exact.detach()) < 4 * rounded


@pytest.mark.parametrize("kind", KINDS)
def test_reconstruction_improves_with_rank(kind: str) -> None:
    prototypes = positive(7, 2, 12, 4)
    x = prototypes[:, :, torch.arange(50) % 4]  # four kinds of pixel
    errors = [float((KINDS[kind](12, rank, eval_steps=30).eval()(x) - x).norm() / x.norm()) for rank in (1, 8)]
    assert errors[1] < 0.9 * errors[0]
    assert errors[1] < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_depends_on_the_input_alone_and_training_draws(kind: str) -> None:
    ham = KINDS[kind](8, 3)
    x = positive(9, 4, 8, 10)
    assert not torch.equal(ham(x), ham(x))
    ham.eval()
    torch.manual_seed(1)
    first = ham(x)
    torch.manual_seed(2)
    assert torch.equal(first, ham(x))
    assert torch.allclose(ham(x[2:3]), first[2:3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_float64_stays_float64(kind: str) -> None:
    ham = KINDS[kind](8, 3).eval()
    x = positive(9, 2, 8, 10)
    out = ham(x.double())
    assert out.dtype == torch.float64 and not torch.equal(out, out.float().double())
    assert torch.allclose(out.float(), ham(x), rtol=1e-3, atol=1e-4)


def test_seeded_bases_without_dim_equal_the_stored_ones() -> None:
    x = positive(10, 2, 8, 10)
    assert torch.equal(NMF(8, 3, seed=5).eval()(x), NMF(None, 3, seed=5).eval()(x))
    assert not torch.equal(NMF(8, 3, seed=5).eval()(x), NMF(8, 3, seed=6).eval()(x))


def test_online_bases_follow_what_the_steps_find_in_training_only() -> None:
    ham = NMF(8, 3, bases_mode="online", eta=0.9)
    x = positive(11, 4, 8, 30)
    before = ham.bases.clone()
    found, _ = ham.decompose(x)
    expected = torch.nn.functional.normalize(before.lerp(found.mean(0, keepdim=True), 0.9), dim=1)
    assert torch.allclose(ham.bases, expected, atol=1e-6)
    ham.eval()
    after = ham.bases.clone()
    ham(x)
    assert torch.equal(ham.bases, after)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NMF(8, 0), "rank is 0"),
        (lambda: NMF(8, 3, train_steps=-1), "train_steps is -1"),
        (lambda: NMF(None, 3, bases_mode="online"), "needs dim"),
        (lambda: NMF(8, 3)(positive(0, 2, 9, 4)), "columns of length 9"),
        (lambda: NMF(8, 3)(positive(0, 2, 8, 4), positive(0, 3, 8, 3)), r"needs \(2 or 1, 8, R\)"),
    ],
)
def test_bad_sizes_are_named(build: Callable[[], MatrixDecomposition], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()

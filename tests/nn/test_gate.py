"""The gated sum against its formula, to the second derivative."""

import pytest
import torch

from hamgan.nn.gate import gated_sum


def maps(layout: torch.memory_format, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shortcut, h = (torch.randn(2, 3, 4, 5, generator=generator).to(dtype, memory_format=layout) for _ in range(2))
    return shortcut.requires_grad_(True), torch.tensor(0.3, dtype=dtype, requires_grad=True), h.requires_grad_(True)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_both_derivatives(layout: torch.memory_format) -> None:
    inputs = maps(layout, torch.float64)

    def squared(*arguments: torch.Tensor) -> torch.Tensor:
        return gated_sum(*arguments).square()

    assert torch.autograd.gradcheck(squared, inputs)
    assert torch.autograd.gradgradcheck(squared, inputs)


@pytest.mark.parametrize("layouts", [("last", "last"), ("last", "first"), ("first", "first")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_formula(layouts: tuple[str, str], dtype: torch.dtype) -> None:
    formats = {"last": torch.channels_last, "first": torch.contiguous_format}
    shortcut, gate, h = maps(formats[layouts[0]], dtype)
    weight = torch.randn(shortcut.shape, generator=torch.Generator().manual_seed(1)).to(
        dtype, memory_format=formats[layouts[1]]
    )
    out = gated_sum(shortcut, gate, h)
    out.backward(weight)
    wide = [t.detach().double() for t in (shortcut, gate, h, weight)]
    unit = torch.finfo(dtype).eps
    for got, expected in (
        (out, wide[0] + wide[1] * wide[2]),
        (shortcut.grad, wide[3]),
        (gate.grad, (wide[2] * wide[3]).sum()),
        (h.grad, wide[1] * wide[3]),
    ):
        assert got.dtype == dtype
        assert torch.allclose(got.double(), expected, rtol=2 * unit, atol=2 * unit)


def test_a_gate_kept_in_float32_gets_its_gradient_in_float32_from_low_maps() -> None:
    shortcut, _, h = maps(torch.channels_last, torch.bfloat16)
    gate = torch.tensor(0.25, requires_grad=True)
    out = gated_sum(shortcut, gate, h)
    out.sum().backward()
    assert out.dtype == torch.bfloat16 and gate.grad.dtype == torch.float32
    assert torch.allclose(gate.grad, h.detach().float().sum(), rtol=1e-5)

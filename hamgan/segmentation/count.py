"""Parameters and multiply-adds, by the rule behind the published figures.

The rule: a convolution costs outputs * (c_in / groups) * k^2, its bias nothing; a batched product of (n, m) and (m, p) n*m*p;
a product of elements, as layer scales, gates and the ham's updates have, its number of elements; a norm the elements of its
map; a bilinear resize four times the elements of its result, even where the size stays. Softmax, division, addition,
normalisation to unit length and activations are free.

Maps have shapes and no values here, so that counting takes no arithmetic.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from hamgan.nn.decomposition import CD, NMF, MatrixDecomposition
from hamgan.segmentation.hamburger import Hamburger
from hamgan.segmentation.layers import BatchNorm, BilinearResize
from hamgan.segmentation.model import SegmentationConfig, Segmentor
from hamgan.segmentation.published import PUBLISHED
from hamgan.segmentation.van import LargeKernelAttention, VANBlock


@dataclass(kw_only=True)
class MultiplyAdds:
    """Multiply-adds of one forward pass in evaluation, by kind."""

    conv: int = 0
    """Convolutions."""
    product: int = 0
    """Batched products of matrices: the ham's."""
    elementwise: int = 0
    """Products of elements."""
    norm: int = 0
    """Norms."""
    resize: int = 0
    """Bilinear resizing."""

    @property
    def total(self) -> int:
        """All kinds together."""
        return sum(getattr(self, field.name) for field in fields(self))


def shapes_of(config: SegmentationConfig) -> Segmentor:
    """Return a segmentor in evaluation mode whose tensors have shapes and no values."""
    with torch.device("meta"):
        model = Segmentor(config)
    return model.to("meta").eval()  # the stored bases are drawn on the CPU whatever the device


def count_parameters(model: nn.Module) -> int:
    """Return how many numbers a network learns; of a segmentor, those of its auxiliary head included."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def count_multiply_adds(model: Segmentor, height: int = 512, width: int = 512) -> MultiplyAdds:
    """Count one image's forward pass in evaluation.

    Args:
        model: As `shapes_of` builds it.
        height: Of the image, pixels.
        width: Of the image, pixels.

    Raises:
        ValueError: If the image is smaller than the backbone's stride.
    """
    counts = MultiplyAdds()
    hooks = [
        module.register_forward_hook(_counting(rule, counts))
        for module in model.modules()
        for kind, rule in RULES.items()
        if isinstance(module, kind)
    ]
    model(torch.empty(1, 3, height, width, device="meta"))
    for hook in hooks:
        hook.remove()
    return counts


Rule = Callable[[MultiplyAdds, nn.Module, Tensor, Tensor], None]
"""Adds a module's cost, given its first input and its output."""


def _counting(rule: Rule, counts: MultiplyAdds) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rule(counts, module, inputs[0], output)

    return hook


def _conv(counts: MultiplyAdds, module: nn.Module, x: Tensor, output: Tensor) -> None:
    assert isinstance(module, nn.Conv2d)
    counts.conv += output.numel() * module.weight[0].numel()


def _norm(counts: MultiplyAdds, module: nn.Module, x: Tensor, output: Tensor) -> None:
    counts.norm += output.numel()


def _resize(counts: MultiplyAdds, module: nn.Module, x: Tensor, output: Tensor) -> None:
    counts.resize += 4 * output.numel()


def _attention(counts: MultiplyAdds, module: nn.Module, x: Tensor, output: Tensor) -> None:
    counts.elementwise += output.numel()  # u times its attention


def _block(counts: MultiplyAdds, module: nn.Module, x: Tensor, output: Tensor) -> None:
    counts.elementwise += 2 * output.numel()  # two layer scales


def _hamburger(counts: MultiplyAdds, module: nn.Module, x: Tensor, output: Tensor) -> None:
    assert isinstance(module, Hamburger)
    counts.elementwise += 2 * output.numel() if module.gate is not None else 0


def _ham(counts: MultiplyAdds, module: nn.Module, x: Tensor, output: Tensor) -> None:
    """Count a decomposition of x (B, D, N) as the published code arranges it."""
    assert isinstance(module, MatrixDecomposition)
    batch, dim, pixels = x.shape
    rank, steps = module.rank, module.eval_steps
    column = dim * pixels * rank  # x^T bases, x coef, bases coef^T
    code_gram, bases_gram = pixels * rank * rank, dim * rank * rank  # coef^T coef, coef gram; bases^T bases, bases gram
    if isinstance(module, NMF):
        product = column * (1 + 2 * steps + 1 + 1) + (code_gram + bases_gram) * (2 * steps + 1)
        elementwise = pixels * rank * (1 + steps + 1) + dim * rank * steps
    elif isinstance(module, CD):  # the ridge regression's solution is not a product
        product = column * (1 + 2 * steps + 1 + 1) + bases_gram
        elementwise = pixels * rank * (1 + steps)
    else:
        product = column * (1 + 2 * steps + 1 + 1)
        elementwise = pixels * rank * (1 + steps + 1)
    counts.product += batch * product
    counts.elementwise += batch * elementwise


RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: _conv,
    BatchNorm: _norm,
    nn.GroupNorm: _norm,
    nn.LayerNorm: _norm,
    BilinearResize: _resize,
    LargeKernelAttention: _attention,
    VANBlock: _block,
    Hamburger: _hamburger,
    MatrixDecomposition: _ham,
}


PUBLISHED_STEPS = 7
"""Steps of the ham in every published figure, those of the VOC systems included, which test with 6."""


def count_table() -> str:
    """Return the published systems' parameters and multiply-adds at 512x512, ours beside theirs, as lines of text."""
    lines = [
        f"{'system':34} {'parameters':>12} {'published':>12} {'':5} {'G mult-adds':>14} {'published':>14}",
    ]
    for name, system in PUBLISHED.items():
        model = shapes_of(replace(system.config, eval_steps=PUBLISHED_STEPS))
        parameters = count_parameters(model)
        theirs = system.giga_multiply_adds
        digits = len(theirs.partition(".")[2])
        ours = f"{count_multiply_adds(model).total / 1e9:.{digits}f}"
        lines.append(
            f"{name:34} {parameters:12,} {system.parameters:12,} {_verdict(parameters == system.parameters):5} "
            f"{ours:>14} {theirs:>14} {_verdict(ours == theirs)}"
        )
    return "\n".join(lines)


def _verdict(equal: bool) -> str:
    return "equal" if equal else "DIFFERS"

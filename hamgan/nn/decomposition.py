"""Matrix decompositions X ~ bases @ coef^T as layers: NMF, vector quantisation (VQ) and concept decomposition (CD).

X is (B, D, N): N pixels as D-channel columns; bases is (B, D, R); coef is (B, N, R). All three start from random or stored
bases, take K steps, and end with one more update of the codes.

The one-step gradient holds the K-th bases and codes constant and differentiates only the last update and the product; the
unrolled gradient runs through all K steps.

Source: Geng et al. 2021, "Is Attention Better Than Matrix Decomposition?", sections 2.2 and 3.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, cast

import torch
import torch.distributed as torch_dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from hamgan.nn import decomposition_kernels
from hamgan.nn.counter_random import uniform
from hamgan.nn.precision import float32_island

EPS = 1e-6

Gradient = Literal["one_step", "unrolled"]
BasesMode = Literal["random", "online"]


class MatrixDecomposition(nn.Module, ABC):
    """What the three decompositions share: where bases come from, how many steps, which gradient.

    In training bases are drawn anew at every forward (`random`), from torch's generator or from keys, or start from the
    stored ones, which then follow what the steps find (`online`). In evaluation they are the stored draw, the same for every
    sample, so that an output depends on nothing but its input.

    Args:
        dim: D, the length of a column. None keeps no stored bases: an evaluation then draws them from `seed`, which gives
            the same values at each call.
        rank: R, the number of bases.
        train_steps: K in training mode.
        eval_steps: K in evaluation mode.
        inv_t: Inverse temperature of the softmax over bases; None for the published one (NMF 1, VQ and CD 100).
        gradient: `one_step` or `unrolled`.
        bases_mode: `random` or `online`.
        normalize_bases: Whether a fresh draw has unit columns (the official TensorFlow HamGAN's NMF does not).
        eta: Rate at which online bases follow, in (0, 1].
        seed: Of the stored draw.
        num_sections: How many decompositions (S) share a map and keep bases of their own.

    Raises:
        ValueError: If a size or a number of steps is out of range.
    """

    bases: Tensor | None
    published_inv_t: ClassVar[float]

    def __init__(
        self,
        dim: int | None = None,
        rank: int = 64,
        *,
        train_steps: int = 6,
        eval_steps: int = 7,
        inv_t: float | None = None,
        gradient: Gradient = "one_step",
        bases_mode: BasesMode = "random",
        normalize_bases: bool = True,
        eta: float = 0.9,
        seed: int = 0,
        num_sections: int = 1,
    ) -> None:
        super().__init__()
        for name, value in {"rank": rank, "dim": 1 if dim is None else dim, "num_sections": num_sections}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        for name, value in {"train_steps": train_steps, "eval_steps": eval_steps}.items():
            if value < 0:
                raise ValueError(f"{name} is {value}; it must be at least 0")
        if bases_mode == "online" and dim is None:
            raise ValueError("bases_mode 'online' needs dim, the length of a column")
        self.dim, self.rank, self.num_sections = dim, rank, num_sections
        self.train_steps, self.eval_steps = train_steps, eval_steps
        self.inv_t = self.published_inv_t if inv_t is None else inv_t
        self.eta, self.seed = eta, seed
        self.gradient, self.bases_mode, self.normalize_bases = gradient, bases_mode, normalize_bases
        stored = None if dim is None else self._seeded_bases(dim)
        self.register_buffer("bases", stored)

    @abstractmethod
    def draw_bases(self, shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Draw initial bases (..., D, R), before any normalisation."""

    @abstractmethod
    def bases_from(self, numbers: Tensor) -> Tensor:
        """Turn uniform numbers in (0, 1) into initial bases of the same distribution as `draw_bases`, same shape."""

    @abstractmethod
    def step(self, x: Tensor, bases: Tensor, coef: Tensor) -> tuple[Tensor, Tensor]:
        """Take one of the K steps; return the updated (bases, coef)."""

    @abstractmethod
    def last_coef(self, x: Tensor, bases: Tensor, coef: Tensor) -> Tensor:
        """Return the codes (B, N, R) of the last update, the one that carries the one-step gradient."""

    def forward(self, x: Tensor, bases: Tensor | None = None) -> Tensor:
        """Reconstruct x from few bases.

        Computed in float32 (float64 if x is) whatever the autocast: the multiplicative updates divide small numbers. Where
        the one-step gradient of NMF has it, the last product is in x's dtype, to which its result is rounded anyway.

        Args:
            x: Columns, (B, D, N); non-negative for NMF. B counts samples times sections, sections fastest.
            bases: Initial bases, (B, D, R) or (1, D, R); NMF takes them as they are, VQ and CD scale their columns to unit
                length, as every public version does with what it draws. Or int64 keys, (B / S,), one a sample, of which
                fresh bases are a function. None for the layer's own.

        Returns:
            bases @ coef^T, (B, D, N), in x's dtype.

        Raises:
            ValueError: If shapes disagree.
        """
        with float32_island(x.device):
            wide = self._widened(x, self.rank if bases is None or bases.dim() == 1 else bases.shape[2])
            return self._reconstruct(x, wide, *self._find(wide, bases))

    def decompose(self, x: Tensor, bases: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (bases (B, D, R), coef (B, N, R)) of columns x (B, D, N), in float32; arguments as in `forward`."""
        x = x.to(_step_dtype(x))
        found, coef = self._find(x, bases)
        return found, self.last_coef(x, found, coef)

    def _widened(self, x: Tensor, rank: int) -> Tensor:
        """Return x in the dtype that the steps are taken in, with so many bases."""
        return x.to(_step_dtype(x))

    def _find(self, x: Tensor, bases: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what the K steps find: the bases, and the codes before their last update."""
        own = bases is None or bases.dim() == 1
        initial = self._initial_bases(x, bases) if bases is None or bases.dim() == 1 else self._checked_bases(x, bases)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.gradient == "unrolled"):
            found, coef = self._iterate(x, initial)
        if own and self.training and self.bases_mode == "online":
            self._update_online(found)
        return found, coef

    def _reconstruct(self, x: Tensor, wide: Tensor, bases: Tensor, coef: Tensor) -> Tensor:
        """Update the codes once more and multiply: (B, D, N), in x's layout and dtype; `wide` is x in float32 or above."""
        return _product(bases, self.last_coef(wide, bases, coef), wide).to(x.dtype)

    def _iterate(self, x: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
        coef = (self.inv_t * torch.bmm(x.transpose(1, 2), bases)).softmax(-1)
        for _ in range(self.train_steps if self.training else self.eval_steps):
            bases, coef = self.step(x, bases, coef)
        return bases, coef

    def _seeded_bases(self, dim: int) -> Tensor:
        """Draw the stored bases, (S, D, R), from the seed alone: on the CPU, so that every device holds the same."""
        generator = torch.Generator().manual_seed(self.seed)
        bases = self.draw_bases((self.num_sections, dim, self.rank), generator, torch.device("cpu"))
        return F.normalize(bases, dim=1) if self.normalize_bases else bases

    def _initial_bases(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """Return fresh bases in training, from the samples' keys where there are any, and the stored ones otherwise."""
        batch, dim = x.shape[:2]
        if self.dim is not None and dim != self.dim:
            raise ValueError(f"x has columns of length {dim}; this decomposition was built for {self.dim}")
        if self.training and self.bases_mode == "random":
            if keys is None:
                bases = self.draw_bases((batch, dim, self.rank), None, x.device)
            else:
                bases = self._keyed_bases(keys, batch, dim)
            bases = bases.to(_step_dtype(x))
            return F.normalize(bases, dim=1) if self.normalize_bases else bases
        stored = self._seeded_bases(dim).to(x.device) if self.bases is None else self.bases
        stored = stored.to(_step_dtype(x))
        if stored.shape[0] == batch:
            return stored
        if batch % stored.shape[0]:
            raise ValueError(f"x has a batch of {batch}; it must be a multiple of the {stored.shape[0]} stored bases")
        return stored.repeat(batch // stored.shape[0], 1, 1)

    def _keyed_bases(self, keys: Tensor, batch: int, dim: int) -> Tensor:
        """Draw bases (batch, D, R) that follow from each sample's key, whatever else is in the batch."""
        if keys.shape != (batch // self.num_sections,) or keys.dtype != torch.int64:
            raise ValueError(
                f"keys are {keys.dtype} {tuple(keys.shape)}; {batch // self.num_sections} samples need as many int64"
            )
        return self.bases_from(uniform(keys, self.num_sections * dim * self.rank).view(batch, dim, self.rank))

    def _checked_bases(self, x: Tensor, bases: Tensor) -> Tensor:
        batch, dim = x.shape[:2]
        if bases.dim() != 3 or bases.shape[0] not in (1, batch) or bases.shape[1] != dim:
            raise ValueError(
                f"bases have shape {tuple(bases.shape)}; x {tuple(x.shape)} needs ({batch} or 1, {dim}, R)"
            )
        bases = bases.to(_step_dtype(x)).expand(batch, -1, -1)
        return bases if isinstance(self, NMF) else F.normalize(bases, dim=1)

    @torch.no_grad()
    def _update_online(self, found: Tensor) -> None:
        """Move the stored bases towards the batch's mean and back to unit columns (README of the public code, eta 0.9)."""
        assert self.bases is not None
        mean = found.unflatten(0, (-1, self.num_sections)).mean(0)
        if torch_dist.is_initialized():
            torch_dist.all_reduce(mean)
            mean /= torch_dist.get_world_size()
        self.bases.copy_(F.normalize(self.bases.lerp(mean, self.eta), dim=1))


class NMF(MatrixDecomposition):
    """Non-negative matrix factorisation by multiplicative updates.

    x must be non-negative; bases start from U[0, 1). Source: Lee & Seung 2001; Geng et al. 2021, algorithm 2.

    With the one-step gradient nothing is held for the backward pass but the bases and one number a code, and the K steps take
    x^T bases once for each dictionary: the softmax that starts the codes and their first update share theirs.
    """

    published_inv_t = 1.0

    def draw_bases(self, shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Draw from U[0, 1)."""
        return torch.rand(shape, generator=generator, device=device)

    def bases_from(self, numbers: Tensor) -> Tensor:
        """Take them as they are."""
        return numbers

    def step(self, x: Tensor, bases: Tensor, coef: Tensor) -> tuple[Tensor, Tensor]:
        """Update the codes, then the bases with the new codes."""
        coef = self.last_coef(x, bases, coef)
        gram = torch.bmm(coef.transpose(1, 2), coef)
        return bases * torch.bmm(x, coef) / (torch.bmm(bases, gram) + EPS), coef

    def last_coef(self, x: Tensor, bases: Tensor, coef: Tensor) -> Tensor:
        """Take one multiplicative update of the codes."""
        gram = torch.bmm(bases.transpose(1, 2), bases)
        return coef / (torch.bmm(coef, gram) + EPS) * torch.bmm(x.transpose(1, 2), bases)

    def _widened(self, x: Tensor, rank: int) -> Tensor:
        if self.gradient == "one_step" and decomposition_kernels.takes_columns(x, rank):
            return x  # widened as it is read
        return super()._widened(x, rank)

    def _iterate(self, x: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            return super()._iterate(x, bases)
        if decomposition_kernels.takes_columns(x, bases.shape[2]):
            steps = self.train_steps if self.training else self.eval_steps
            return decomposition_kernels.nmf(x, bases, steps, inv_t=self.inv_t, eps=EPS)
        # The same steps without a temporary larger than the codes.
        pixels = x.transpose(1, 2)
        products = torch.bmm(pixels, bases)
        coef = (self.inv_t * products).softmax(-1)
        for step in range(self.train_steps if self.training else self.eval_steps):
            if step:
                products = torch.bmm(pixels, bases)
            scale = torch.bmm(coef, torch.bmm(bases.transpose(1, 2), bases)).add_(EPS)
            coef.div_(scale).mul_(products)
            scale = torch.bmm(bases, torch.bmm(coef.transpose(1, 2), coef)).add_(EPS)
            bases = torch.bmm(x, coef).mul_(bases).div_(scale)
        return bases, coef

    def _reconstruct(self, x: Tensor, wide: Tensor, bases: Tensor, coef: Tensor) -> Tensor:
        if self.gradient == "unrolled":
            return super()._reconstruct(x, wide, bases, coef)
        if decomposition_kernels.takes_columns(x, bases.shape[2]):
            return cast(Tensor, _ProjectionInKernels.apply(x, bases, coef, None))
        gram = torch.bmm(bases.transpose(1, 2), bases)
        scale = coef / torch.bmm(coef, gram).add_(EPS)
        return _rescaled_projection(x, bases.to(x.dtype), scale.to(x.dtype))


class VQ(MatrixDecomposition):
    """Soft vector quantisation (spherical k-means with a temperature); bases start from N(0, 1).

    Source: Geng et al. 2021, section 2.2 and algorithm 3.
    """

    published_inv_t = 100.0

    def draw_bases(self, shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Draw from N(0, 1)."""
        return torch.randn(shape, generator=generator, device=device)

    def bases_from(self, numbers: Tensor) -> Tensor:
        """Map them through the normal distribution's inverse."""
        return torch.special.ndtri(numbers)

    def step(self, x: Tensor, bases: Tensor, coef: Tensor) -> tuple[Tensor, Tensor]:
        """Assign by cosine, then move each base to its pixels' weighted mean."""
        cosines = torch.bmm(F.normalize(x, dim=1).transpose(1, 2), F.normalize(bases, dim=1, eps=EPS))
        coef = _unit_sum_over_pixels((self.inv_t * cosines).softmax(-1))
        return torch.bmm(x, coef), coef

    def last_coef(self, x: Tensor, bases: Tensor, coef: Tensor) -> Tensor:
        """Assign by cosine; the norm of x is held constant."""
        directions = x / (EPS + x.detach().norm(dim=1, keepdim=True))
        cosines = torch.bmm(directions.transpose(1, 2), F.normalize(bases, dim=1, eps=EPS))
        return (self.inv_t * cosines).softmax(-1)


class CD(MatrixDecomposition):
    """Concept decomposition: soft k-means whose final codes solve a ridge regression; bases start from N(0, 1).

    Source: Geng et al. 2021, section 2.2 and appendix; Dhillon & Modha 2001.
    """

    published_inv_t = 100.0
    beta = 0.1
    """Ridge weight of the last regression: 0.1 in the paper's PyTorch code, 0.01 in the official HamGAN; set it after
    building."""

    def draw_bases(self, shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Draw from N(0, 1)."""
        return torch.randn(shape, generator=generator, device=device)

    def bases_from(self, numbers: Tensor) -> Tensor:
        """Map them through the normal distribution's inverse."""
        return torch.special.ndtri(numbers)

    def step(self, x: Tensor, bases: Tensor, coef: Tensor) -> tuple[Tensor, Tensor]:
        """Assign by cosine, move each base to its pixels' weighted mean, and scale it to unit length."""
        cosines = torch.bmm(F.normalize(x, dim=1).transpose(1, 2), bases)
        coef = _unit_sum_over_pixels((self.inv_t * cosines).softmax(-1))
        return F.normalize(torch.bmm(x, coef), dim=1, eps=EPS), coef

    def last_coef(self, x: Tensor, bases: Tensor, coef: Tensor) -> Tensor:
        """Solve min_c |x - bases c|^2 + beta |c|^2 for every pixel."""
        gram = torch.bmm(bases.transpose(1, 2), bases)
        ridge = self.beta * torch.eye(gram.shape[-1], device=gram.device, dtype=gram.dtype)
        return torch.linalg.solve(gram + ridge, torch.bmm(bases.transpose(1, 2), x)).transpose(1, 2)


class _RescaledProjection(torch.autograd.Function):
    """bases (scale * (x^T bases))^T: NMF's last update and product, with all but x held constant.

    Linear in x and its own adjoint, so that the backward pass is the same map of the gradient, to any order, and x itself is
    not kept.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, bases: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(bases, scale)
        return _product(bases, torch.bmm(x.transpose(1, 2), bases).mul_(scale), x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _rescaled_projection(gradient, *ctx.saved_tensors), None, None


class _ProjectionInKernels(torch.autograd.Function):
    """`_RescaledProjection` with the scale's computation, compiled; the scale is handed on to the gradient's own pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, bases: Tensor, coef: Tensor | None, scale: Tensor | None) -> Tensor:
        out, scale = decomposition_kernels.nmf_project(x, bases, coef=coef, scale=scale, eps=EPS)
        ctx.save_for_backward(bases, scale)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        bases, scale = ctx.saved_tensors
        if not decomposition_kernels.takes_columns(gradient, bases.shape[2]):
            gradient = gradient.transpose(1, 2).contiguous().transpose(1, 2)
        return cast(Tensor, _ProjectionInKernels.apply(gradient, bases, None, scale)), None, None, None


def _rescaled_projection(x: Tensor, bases: Tensor, scale: Tensor) -> Tensor:
    return cast(Tensor, _RescaledProjection.apply(x, bases, scale))


def _product(bases: Tensor, coef: Tensor, like: Tensor) -> Tensor:
    """Return bases @ coef^T, (B, D, N), contiguous along D where `like` is (a channels_last map's columns), else along N."""
    if like.stride(1) == 1:
        return torch.bmm(coef, bases.transpose(1, 2)).transpose(1, 2)
    return torch.bmm(bases, coef.transpose(1, 2))


def _step_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _unit_sum_over_pixels(coef: Tensor) -> Tensor:
    return coef / (EPS + coef.sum(1, keepdim=True))

"""Exact nearest neighbours and ball memberships in feature space, by blocks and at float32 speed.

A float32 matrix product gives every squared distance with a known error bound. Whatever that bound cannot
decide (copies, ties, near ties) is computed again from the differences in float64: the answers are those of a
dense float64 computation, while memory stays at one block and nearly all work is a matrix product.
"""

import copy
import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hamgan.metrics.stats import FloatArray, as_features

IntArray = NDArray[np.int64]
_ROWS = 512  # rows of a distance block
_COLUMNS = 1024  # points cast at once for its columns
_SPARE = 12  # candidates beyond k that are checked exactly
_PAIRS = 1024  # exact distances computed at once


class PointSet:
    """Features with their duplicates folded together, since copies would make every comparison a tie.

    Args:
        features: (N, d).
        centre: Subtracted before the float32 product, (d,): distances stay, rounding shrinks.
        device: Where the products run.

    Raises:
        ValueError: If the features are not floating (N, d) with N >= 1, or not finite.
    """

    def __init__(self, features: ArrayLike | Tensor, *, centre: FloatArray, device: torch.device | str = "cpu") -> None:
        rows = as_features(features)
        if len(rows) == 0 or rows.shape[1] != len(centre):
            raise ValueError(f"features: expected (N, {len(centre)}) with N >= 1, got {rows.shape}")
        if not np.isfinite(rows).all():
            raise ValueError("features contain NaN or infinity")
        zero = rows.dtype.type(0)  # added, it turns -0.0 into 0.0: equal rows have equal bytes
        keys = [hashlib.blake2b((row + zero).tobytes(), digest_size=16).digest() for row in rows]
        _, first, inverse, counts = np.unique(
            np.frombuffer(b"".join(keys), "V16"), return_index=True, return_inverse=True, return_counts=True
        )
        if len(first) == len(rows):
            first = inverse = np.arange(len(rows))  # the usual case needs no second copy
        self.first, self.inverse, self.counts = first, inverse, counts
        self.rows = rows if len(first) == len(rows) else rows[first]
        self.total = len(rows)
        self.centre = centre.astype(rows.dtype)  # any centre serves, if it is the same for both sides
        self.device = torch.device(device)
        self._norms: Tensor | None = None

    def recentred(self, centre: FloatArray) -> "PointSet":
        """View the same points from another centre."""
        other = copy.copy(self)
        other.centre, other._norms = centre.astype(self.rows.dtype), None
        return other

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def norms(self) -> Tensor:
        """Squared norms of the centred points, (U,), float64."""
        if self._norms is None:
            parts = (slice(start, start + _COLUMNS) for start in range(0, len(self), _COLUMNS))
            blocks = (self.rows[part].astype(np.float64) - self.centre for part in parts)
            self._norms = torch.from_numpy(np.concatenate([np.square(block).sum(axis=1) for block in blocks]))
        return self._norms

    def cast(self, part: IntArray | slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return some centred points (n, d) and their squared norms (n,) in a type, on the device.

        Made anew each time: a second copy of all features would be most of the memory.
        """
        rows = self.rows[part] if dtype == torch.float32 else self.rows[part].astype(np.float64)
        points = torch.from_numpy(rows - self.centre).to(dtype)
        return points.to(self.device), self.norms[part].to(dtype).to(self.device)


def exact_squared(a: PointSet, i: IntArray, b: PointSet, j: IntArray) -> FloatArray:
    """Compute |a_i - b_j|^2 in float64, pair by pair; the same two points always give the same bits."""
    answer = np.empty(len(i))
    for start in range(0, len(i), _PAIRS):
        part = slice(start, start + _PAIRS)
        difference = a.rows[i[part]].astype(np.float64) - b.rows[j[part]]
        answer[part] = np.square(difference, out=difference).sum(axis=1)
    return answer


def _tile(a: PointSet, part: IntArray, b: PointSet, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    # Squared distances (rows, U_b) and their error bound. With unit roundoff u a product of length d is
    # off by at most d u |x| |y|; the casts and the norms add a few u more.
    x, x_norm = a.cast(part, dtype)
    squared = torch.empty(len(part), len(b), dtype=dtype, device=b.device)
    norms = torch.empty_like(squared)
    for start in range(0, len(b), _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        y, y_norm = b.cast(columns, dtype)
        norms[:, columns] = x_norm[:, None] + y_norm
        squared[:, columns] = norms[:, columns] - 2 * (x @ y.T)
    return squared, norms.mul_((x.shape[1] + 16) * torch.finfo(dtype).eps / 2)


def kth_neighbour(a: PointSet, b: PointSet, k: int) -> tuple[FloatArray, IntArray]:
    """Find for each point of `a` its k-th nearest in `b`, copies counted as often as they occur.

    If both are the same object, a point is not its own neighbour (but its copies are).

    Args:
        a: Queries.
        b: Where to look.
        k: 1 for the nearest.

    Returns:
        Exact squared distance to the k-th nearest, (U_a,), and number of the nearest one in b.rows, (U_a,).

    Raises:
        ValueError: If b has fewer than k other points.
    """
    available = b.total - (a is b)
    if not 1 <= k <= available:
        raise ValueError(f"k = {k}: expected 1..{available}, the number of other points")
    radius, nearest = np.empty(len(a)), np.empty(len(a), np.int64)
    for start in range(0, len(a), _ROWS):
        part = np.arange(start, min(start + _ROWS, len(a)))
        for dtype in (torch.float32, torch.float64):
            candidates, floor = _candidates(a, part, b, min(k + 1 + _SPARE, len(b)), dtype)
            r, n = _kth_of(a, part, b, candidates, k)
            radius[part], nearest[part] = r, n
            part = part[~(r <= floor)]  # something left out might be nearer: decide those more finely
            if len(part) == 0:
                break
        for i in part:
            everything = np.arange(len(b))[None]
            (radius[i],), (nearest[i],) = _kth_of(a, np.array([i]), b, everything, k)
    return radius, nearest


def _candidates(
    a: PointSet, part: IntArray, b: PointSet, count: int, dtype: torch.dtype
) -> tuple[IntArray, FloatArray]:
    squared, slack = _tile(a, part, b, dtype)
    if count == len(b):
        return np.tile(np.arange(count), (len(part), 1)), np.full(len(part), np.inf)
    values, candidates = (squared - slack).topk(count, dim=1, largest=False)
    return candidates.cpu().numpy(), values[:, -1].double().cpu().numpy()


def _kth_of(a: PointSet, part: IntArray, b: PointSet, candidates: IntArray, k: int) -> tuple[FloatArray, IntArray]:
    count = candidates.shape[1]
    flat = candidates.ravel()
    squared = exact_squared(a, np.repeat(part, count), b, flat).reshape(-1, count)
    weight = b.counts[candidates] - (candidates == part[:, None] if a is b else 0)
    squared = np.where(weight > 0, squared, np.inf)
    order = np.argsort(squared, axis=1, kind="stable")
    squared = np.take_along_axis(squared, order, 1)
    reached = np.take_along_axis(weight, order, 1).cumsum(axis=1) >= k
    column = reached.argmax(axis=1)
    rows = np.arange(len(part))
    found = np.where(reached.any(axis=1), squared[rows, column], np.inf)
    return found, candidates[rows, order[:, 0]]


def memberships(
    a: PointSet, b: PointSet, radius: FloatArray, *, inclusive: bool = False
) -> Iterator[tuple[slice, NDArray[np.bool_]]]:
    """Say by blocks which points of `a` lie in which balls around the points of `b`.

    Args:
        a: Points.
        b: Centres of the balls.
        radius: Squared radii, exact, (U_b,).
        inclusive: Whether the surface belongs to the ball.

    Yields:
        Rows of a, and for them whether a_i is in b_j's ball, (rows, U_b).
    """
    limit = torch.from_numpy(radius)
    for start in range(0, len(a), _ROWS):
        part = np.arange(start, min(start + _ROWS, len(a)))
        for dtype in (torch.float32, torch.float64):
            squared, slack = _tile(a, part, b, dtype)
            # The radius itself is rounded to the type: one more unit, hidden in the double slack.
            difference = squared.sub_(limit.to(dtype).to(squared.device))
            slack.mul_(2)
            inside = difference < -slack
            open_pairs = (difference.abs_() <= slack).nonzero().cpu().numpy()
            if len(open_pairs) <= inside.numel() // 100:
                break
        answer = inside.cpu().numpy()
        if len(open_pairs):
            i, j = open_pairs[:, 0], open_pairs[:, 1]
            exact = exact_squared(a, part[i], b, j)
            answer[i, j] = exact <= radius[j] if inclusive else exact < radius[j]
        yield slice(start, start + len(part)), answer

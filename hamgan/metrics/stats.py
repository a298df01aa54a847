"""Mean and covariance of features, gathered in one pass and constant memory."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as torch_dist
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """A Gaussian fitted to features.

    Attributes:
        mu: Mean, (d,).
        sigma: Covariance with ddof 1, (d, d), symmetric.
        n: Samples that it was fitted to; None if a file did not say.

    Raises:
        ValueError: If the shapes disagree, a value is not finite, or n < 2.
    """

    mu: FloatArray
    sigma: FloatArray
    n: int | None

    def __post_init__(self) -> None:
        if self.mu.ndim != 1 or self.sigma.shape != (len(self.mu), len(self.mu)):
            raise ValueError(f"mu {self.mu.shape} and sigma {self.sigma.shape}: expected (d,) and (d, d)")
        if not (np.isfinite(self.mu).all() and np.isfinite(self.sigma).all()):
            raise ValueError("mu or sigma contain NaN or infinity")
        if self.n is not None and self.n < 2:
            raise ValueError(f"n = {self.n}: a covariance needs at least 2 samples")


class FeatureStats:
    """First and second moments of (N, d) features, streamed in float64.

    The sums are of x - shift, with shift the first batch's mean: raw second moments of features whose mean
    is large against their spread would lose those digits that the covariance consists of. Sums of several
    processes or files are merged exactly, by moving one's shift to the other's.

    Args:
        dim: Width d of the features.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"dim = {dim}: a feature needs at least one number")
        self.dim = dim
        self.n = 0
        self._shift: FloatArray = np.zeros(dim)
        self._sum: FloatArray = np.zeros(dim)
        self._outer: FloatArray = np.zeros((dim, dim))

    @classmethod
    def from_features(cls, features: ArrayLike | Tensor) -> Self:
        """Gather the moments of features that are all there, (N, d)."""
        array = as_features(features)
        stats = cls(array.shape[1])
        for start in range(0, len(array), 4096):  # bounds the float64 copy
            stats.update(array[start : start + 4096])
        return stats

    @classmethod
    def from_moments(cls, moments: Moments) -> Self:
        """Rebuild the sums from stored moments, to merge or continue them.

        Raises:
            ValueError: If their sample count is unknown.
        """
        if moments.n is None:
            raise ValueError("n is unknown: moments without their sample count cannot be merged or continued")
        stats = cls(len(moments.mu))
        stats.n = moments.n
        stats._shift = moments.mu.copy()
        stats._outer = moments.sigma * (moments.n - 1)
        return stats

    def moments(self) -> Moments:
        """Fit the Gaussian to what was seen so far.

        Raises:
            ValueError: With fewer than 2 samples.
        """
        return Moments(self.mu, self.sigma, self.n)

    def update(self, features: ArrayLike | Tensor) -> None:
        """Add features.

        Args:
            features: (B, d), any float type.

        Raises:
            ValueError: If the width differs or a value is not finite.
        """
        x = as_features(features).astype(np.float64)
        if x.shape[1] != self.dim:
            raise ValueError(f"features: width {x.shape[1]}, expected {self.dim}")
        if not np.isfinite(x).all():
            raise ValueError("features contain NaN or infinity")
        if len(x) == 0:
            return
        if self.n == 0:
            self._shift = x.mean(axis=0)
        x -= self._shift
        self.n += len(x)
        self._sum += x.sum(axis=0)
        self._outer += x.T @ x

    def merge(self, other: "FeatureStats") -> None:
        """Add the samples that another instance has seen.

        Source: Chan, Golub & LeVeque 1979, written for shifted sums.

        Raises:
            ValueError: If the widths differ.
        """
        if other.dim != self.dim:
            raise ValueError(f"features: width {other.dim}, expected {self.dim}")
        if other.n == 0:
            return
        if self.n == 0:
            self._shift = other._shift.copy()
        total, outer = other._moved_to(self._shift)
        self.n += other.n
        self._sum += total
        self._outer += outer

    def remove(self, other: "FeatureStats") -> None:
        """Take out the samples of another instance, all of which this one has seen.

        Raises:
            ValueError: If the widths differ or the other has more samples.
        """
        if other.dim != self.dim or other.n > self.n:
            raise ValueError(f"cannot take {other.n} x {other.dim} features out of {self.n} x {self.dim}")
        total, outer = other._moved_to(self._shift)
        self.n -= other.n
        self._sum -= total
        self._outer -= outer

    def all_reduce(self) -> None:
        """Replace this process's moments by those over all processes; do nothing when run alone."""
        if not torch_dist.is_initialized():
            return
        device = torch.device("cuda" if torch_dist.get_backend() == "nccl" else "cpu")
        # Any common shift is exact; the average of the shifts is near everyone's data.
        head = torch.tensor(np.append(self._shift, 1.0) * (self.n > 0), dtype=torch.float64, device=device)
        torch_dist.all_reduce(head)
        shift = head[:-1].cpu().numpy() / max(float(head[-1]), 1.0)
        total, outer = self._moved_to(shift) if self.n else (self._sum, self._outer)
        flat = torch.from_numpy(np.concatenate([[float(self.n)], total, outer.ravel()])).to(device)
        torch_dist.all_reduce(flat)
        sums = flat.cpu().numpy()
        self.n = round(sums[0])
        self._shift = shift
        self._sum = sums[1 : 1 + self.dim].copy()
        self._outer = sums[1 + self.dim :].reshape(self.dim, self.dim).copy()

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the running sums as arrays, to be stored; `from_state` takes them back to the last bit."""
        return {"n": np.array(self.n), "shift": self._shift, "sum": self._sum, "outer": self._outer}

    @classmethod
    def from_state(cls, state: dict[str, NDArray[Any]]) -> Self:
        """Take up stored sums."""
        stats = cls(len(state["shift"]))
        stats.n = int(state["n"])
        stats._shift, stats._sum, stats._outer = state["shift"], state["sum"], state["outer"]
        return stats

    def _moved_to(self, shift: FloatArray) -> tuple[FloatArray, FloatArray]:
        move = self._shift - shift
        cross = np.outer(move, self._sum)
        return self._sum + self.n * move, self._outer + cross + cross.T + self.n * np.outer(move, move)

    @property
    def mu(self) -> FloatArray:
        """Mean, (d,).

        Raises:
            ValueError: Without a sample.
        """
        if self.n < 1:
            raise ValueError("no features: the mean needs at least one sample")
        return self._shift + self._sum / self.n

    @property
    def sigma(self) -> FloatArray:
        """Covariance with ddof 1, (d, d), exactly symmetric.

        Raises:
            ValueError: With fewer than 2 samples.
        """
        if self.n < 2:
            raise ValueError(f"n = {self.n}: a covariance needs at least 2 samples")
        cov = (self._outer - np.outer(self._sum, self._sum) / self.n) / (self.n - 1)
        return (cov + cov.T) / 2


def as_features(features: ArrayLike | Tensor) -> NDArray[np.floating]:
    """View features as a floating (N, d) array.

    Raises:
        ValueError: If they are not two-dimensional or not floating.
    """
    array = features.detach().cpu().numpy() if isinstance(features, Tensor) else np.asarray(features)
    if array.ndim != 2 or array.dtype.kind != "f":
        raise ValueError(f"features: expected floating (N, d), got {array.dtype} {array.shape}")
    return array

"""Inception Score, streamed: the images' order decides their split, and no logits are kept."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hamgan.metrics.scores import SubsetScore
from hamgan.metrics.stats import FloatArray, as_features


class InceptionScore:
    """exp of the mean KL divergence of p(y|x) from p(y), over consecutive splits of the (shuffled) images.

    The order matters: in label order a split sees few classes, and the score collapses. Hence the images are
    shuffled by default, with torch-fidelity's permutation. Only sums are kept, for each split of p and of
    p log p: they add up over batches, processes and files in any order.

    Args:
        num_images: How many images there will be, N.
        splits: Number of splits, at i * N // splits.
        shuffle_seed: Of numpy's RandomState; None keeps the images' order.

    Source: Salimans et al. 2016, section 4; Barratt & Sharma 2018 on what the splits do.
    """

    def __init__(self, num_images: int, *, splits: int = 10, shuffle_seed: int | None = 2020) -> None:
        if not 1 <= splits <= num_images:
            raise ValueError(f"splits = {splits}: expected 1..{num_images}, the number of images")
        self.num_images = num_images
        self.splits = splits
        self.shuffle_seed = shuffle_seed
        order = np.arange(num_images)
        if shuffle_seed is not None:
            order = np.random.RandomState(shuffle_seed).permutation(num_images)
        bounds = [i * num_images // splits for i in range(splits + 1)]
        self._sizes = np.diff(bounds)
        self._split_of = np.empty(num_images, np.int64)
        self._split_of[order] = np.repeat(np.arange(splits), self._sizes)
        self._seen = np.zeros(num_images, bool)
        self._sum_p: FloatArray | None = None  # (splits, K), made when K is known
        self._sum_plogp: FloatArray = np.zeros(splits)

    def update(self, logits: ArrayLike | Tensor, indices: ArrayLike | None = None) -> None:
        """Add images.

        Args:
            logits: (B, K), before softmax.
            indices: Number of each image in 0..N-1, (B,); None continues after the last one seen.

        Raises:
            ValueError: If a number is out of range or was seen already, or a logit is not finite.
        """
        x = as_features(logits).astype(np.float64)
        if not np.isfinite(x).all():
            raise ValueError("logits contain NaN or infinity")
        where = self._positions(len(x), indices)
        # In float32, p log p of a vanishing p is 0 * -inf = NaN.
        x -= x.max(axis=1, keepdims=True)
        log_p = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        sum_p = self._sums(x.shape[1])
        np.add.at(sum_p, self._split_of[where], p)
        np.add.at(self._sum_plogp, self._split_of[where], (p * log_p).sum(axis=1))
        self._seen[where] = True

    def merge(self, other: "InceptionScore") -> None:
        """Add the images that another instance, made with the same arguments, has seen.

        Raises:
            ValueError: If the arguments differ or an image was seen by both.
        """
        if not np.array_equal(self._split_of, other._split_of):
            raise ValueError("Inception Score: cannot merge other images, splits or another order")
        if (self._seen & other._seen).any():
            both = int(np.flatnonzero(self._seen & other._seen)[0])
            raise ValueError(f"Inception Score: image {both} was counted twice")
        if other._sum_p is None:
            return
        sum_p = self._sums(other._sum_p.shape[1])
        sum_p += other._sum_p
        self._sum_plogp += other._sum_plogp
        self._seen |= other._seen

    def compute(self) -> SubsetScore:
        """Return mean and standard deviation over the splits.

        Raises:
            ValueError: If images are missing.
        """
        missing = self.num_images - int(self._seen.sum())
        if missing or self._sum_p is None:
            raise ValueError(f"Inception Score: {missing} of {self.num_images} images are missing")
        q = self._sum_p / self._sizes[:, None]
        entropy = -(q * np.log(q, out=np.zeros_like(q), where=q > 0)).sum(axis=1)
        scores = np.exp(self._sum_plogp / self._sizes + entropy)
        return SubsetScore(float(scores.mean()), float(scores.std()))

    def _positions(self, count: int, indices: ArrayLike | None) -> NDArray[np.int64]:
        start = int(self._seen.sum())
        where = np.arange(start, start + count) if indices is None else np.asarray(indices, np.int64)
        if where.shape != (count,):
            raise ValueError(f"indices: expected {count}, one per image, got shape {where.shape}")
        if count and not (where.min() >= 0 and where.max() < self.num_images):
            raise ValueError(f"indices: {where.min()}..{where.max()} leave 0..{self.num_images - 1}")
        if self._seen[where].any() or len(np.unique(where)) != count:
            raise ValueError("Inception Score: an image was counted twice")
        return where

    def _sums(self, num_classes: int) -> FloatArray:
        if self._sum_p is None:
            self._sum_p = np.zeros((self.splits, num_classes))
        if self._sum_p.shape[1] != num_classes:
            raise ValueError(f"logits: {num_classes} classes, expected {self._sum_p.shape[1]}")
        return self._sum_p

    def like(self) -> "InceptionScore":
        """Make an empty instance with the same arguments."""
        return InceptionScore(self.num_images, splits=self.splits, shuffle_seed=self.shuffle_seed)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the sums as arrays, to be stored; `restore` takes them back."""
        sums = np.zeros((self.splits, 0)) if self._sum_p is None else self._sum_p
        return {"sum_p": sums, "sum_plogp": self._sum_plogp, "seen": np.flatnonzero(self._seen)}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Add stored sums of an instance made with the same arguments."""
        other = self.like()
        if state["sum_p"].shape[1]:
            other._sum_p = state["sum_p"].astype(np.float64)
        other._sum_plogp = state["sum_plogp"].astype(np.float64)
        other._seen[state["seen"].astype(np.int64)] = True
        self.merge(other)

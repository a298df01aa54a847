"""Statistics over steps, thinned while they are read: a million rows take the memory of a thousand."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

MAX_BUCKETS = 1000
"""Points a series keeps at most."""
MAX_SERIES = 400
"""Series that are kept; a folder with more is not one that we wrote."""
MAX_KEY = 200
"""Longest key, characters."""
MAX_STEP = 2**53
"""Steps from here on are not exact in a browser."""


class Point(NamedTuple):
    """What a bucket of neighbouring rows holds; of a single row in a run that needs no thinning."""

    step: int
    """Middle of the bucket's first and last step."""
    mean: float | None
    """Of the finite values; None where there is none."""
    low: float | None
    """Lowest finite value."""
    high: float | None
    """Highest finite value."""
    bad: str
    """Which values were not finite: a subset of `NaN ∞ -∞`, in this order; empty if all were finite."""


class Series:
    """One statistic over steps: mean, lowest and highest value of at most `2 * max_buckets` ranges of steps.

    Ranges are equally wide, one step to begin with; whenever there are too many, neighbours are joined. Lowest and highest
    values stay exact however often that happens, so that no spike is lost.

    Args:
        max_buckets: Half the largest number of ranges.
    """

    def __init__(self, max_buckets: int = MAX_BUCKETS) -> None:
        self.width = 1
        self.num_rows = 0
        self.last: float | None = None
        """The newest value; None where it was not finite."""
        self._max_buckets = max_buckets
        # By range: [first step, last step, low, high, sum, number of finite values, which were not (bits)]
        self._buckets: dict[int, list[Any]] = {}
        self._last_step = -1

    def add(self, step: int, value: float) -> None:
        """Add a row; rows may come in any order."""
        self.num_rows += 1
        finite = math.isfinite(value)
        if step >= self._last_step:
            self._last_step = step
            self.last = value if finite else None
        bucket = self._buckets.get(step // self.width)
        if bucket is None:
            if len(self._buckets) >= 2 * self._max_buckets:
                self._coarsen()
            bucket = self._buckets.setdefault(step // self.width, [step, step, math.inf, -math.inf, 0.0, 0, 0])
        if step < bucket[0]:
            bucket[0] = step
        if step > bucket[1]:
            bucket[1] = step
        if finite:
            if value < bucket[2]:
                bucket[2] = value
            if value > bucket[3]:
                bucket[3] = value
            bucket[4] += value
            bucket[5] += 1
        else:
            bucket[6] |= 1 if value != value else 2 if value > 0 else 4

    def _coarsen(self) -> None:
        """Join neighbouring ranges until half of them are free again."""
        while len(self._buckets) > self._max_buckets:
            self.width *= 2
            joined: dict[int, list[Any]] = {}
            for bucket in self._buckets.values():
                other = joined.setdefault(bucket[0] // self.width, bucket)
                if other is not bucket:
                    other[:] = [
                        min(other[0], bucket[0]),
                        max(other[1], bucket[1]),
                        min(other[2], bucket[2]),
                        max(other[3], bucket[3]),
                        other[4] + bucket[4],
                        other[5] + bucket[5],
                        other[6] | bucket[6],
                    ]
            self._buckets = joined

    def points(self, max_points: int = MAX_BUCKETS) -> list[Point]:
        """Return the series thinned to at most `max_points`, by step."""
        self._max_buckets = min(self._max_buckets, max(max_points, 1))
        self._coarsen()
        points = []
        for first, last, low, high, total, count, bad in (self._buckets[key] for key in sorted(self._buckets)):
            marks = " ".join(name for bit, name in ((1, "NaN"), (2, "∞"), (4, "-∞")) if bad & bit)
            mean = min(max(total / count, low), high) if count else None  # of huge values the sum overflows
            points.append(Point((first + last) // 2, mean, low if count else None, high if count else None, marks))
        return points

    @property
    def steps(self) -> tuple[int, int]:
        """The first and the last step."""
        return min(bucket[0] for bucket in self._buckets.values()), max(bucket[1] for bucket in self._buckets.values())


def step_of(row: Mapping[str, Any]) -> int | None:
    """Return a row's step, None where it has none that could be."""
    step = row.get("step")
    return step if type(step) is int and 0 <= step < MAX_STEP else None


def number_of(value: Any) -> float | None:
    """Return a JSON value as a number, NaN for null, None for what is no number."""
    if value is None:
        return math.nan
    if type(value) is float:
        return value
    if type(value) is int:
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return None


def read_series(rows: Iterable[Mapping[str, Any]], max_buckets: int = MAX_BUCKETS) -> dict[str, Series]:
    """Collect every numeric key of rows with a step; keys of the first `MAX_SERIES` names only."""
    series: dict[str, Series] = {}
    for row in rows:
        step = step_of(row)
        if step is None:
            continue
        for key, value in row.items():
            known = series.get(key)
            if known is None:
                if key == "step" or len(series) >= MAX_SERIES or len(key) > MAX_KEY or number_of(value) is None:
                    continue
                known = series[key] = Series(max_buckets)
            number = value if type(value) is float else number_of(value)
            if number is not None:
                known.add(step, number)
    return series

"""Small results that several metrics share."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SubsetScore:
    """Mean and standard deviation (ddof 0) of a metric over subsets of the samples."""

    mean: float
    std: float

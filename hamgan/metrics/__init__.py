"""Evaluation of generated images: extractors, stored statistics and the distances between them.

Everything here takes images or features, never a generator or a training object.
"""

from hamgan.metrics.frechet import FrechetReference, frechet_distance
from hamgan.metrics.kid import kernel_distance, kernel_distance_subsets
from hamgan.metrics.stats import FeatureStats

__all__ = [
    "FeatureStats",
    "FrechetReference",
    "frechet_distance",
    "kernel_distance",
    "kernel_distance_subsets",
]

"""Evaluation of generated images: extractors, stored statistics and the distances between them.

Everything here takes images or features, never a generator or a training object.
"""

from hamgan.metrics.build import Description, build_statistics, merge_statistics
from hamgan.metrics.card import Card
from hamgan.metrics.classes import class_accuracy, class_frechet
from hamgan.metrics.evaluate import evaluate
from hamgan.metrics.extractors import EXTRACTORS, Extractor, Features, load_extractor
from hamgan.metrics.folder import FolderImages
from hamgan.metrics.frechet import FrechetReference, frechet_distance
from hamgan.metrics.frechet_bias import frechet_infinity, frechet_jackknife
from hamgan.metrics.inception_score import InceptionScore
from hamgan.metrics.inspection import check_statistics, inspect_statistics
from hamgan.metrics.kid import kernel_distance, kernel_distance_jackknife, kernel_distance_subsets
from hamgan.metrics.memorisation import memorisation
from hamgan.metrics.picture import draw_picture
from hamgan.metrics.prdc import prdc
from hamgan.metrics.protocols import PROTOCOLS, QUICK, EvaluationSettings, Protocol
from hamgan.metrics.reference import (
    HELD_OUT_SPLITS,
    Reference,
    StatsMeta,
    StoredFeatures,
    check_dataset,
    load_features,
    load_statistics,
    save_statistics,
)
from hamgan.metrics.sources import ArrayImages, DrawnImages, ImageSource, ReaderImages, load_npz_images
from hamgan.metrics.stats import FeatureStats, Moments

__all__ = [
    "EXTRACTORS",
    "HELD_OUT_SPLITS",
    "PROTOCOLS",
    "QUICK",
    "ArrayImages",
    "Card",
    "Description",
    "DrawnImages",
    "EvaluationSettings",
    "Extractor",
    "FeatureStats",
    "Features",
    "FolderImages",
    "FrechetReference",
    "ImageSource",
    "InceptionScore",
    "Moments",
    "Protocol",
    "ReaderImages",
    "Reference",
    "StatsMeta",
    "StoredFeatures",
    "build_statistics",
    "check_dataset",
    "check_statistics",
    "class_accuracy",
    "class_frechet",
    "draw_picture",
    "evaluate",
    "frechet_distance",
    "frechet_infinity",
    "frechet_jackknife",
    "inspect_statistics",
    "kernel_distance",
    "kernel_distance_jackknife",
    "kernel_distance_subsets",
    "load_extractor",
    "load_features",
    "load_npz_images",
    "load_statistics",
    "memorisation",
    "merge_statistics",
    "prdc",
    "save_statistics",
]

"""Feature networks behind one interface; `load_extractor` builds one by name."""

from hamgan.metrics.extractors.base import Extractor, Features, check_images, exact_float32
from hamgan.metrics.extractors.registry import EXTRACTORS, load_extractor

__all__ = ["EXTRACTORS", "Extractor", "Features", "check_images", "exact_float32", "load_extractor"]

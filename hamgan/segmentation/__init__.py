"""Semantic segmentation with Hamburgers: HamNet and Light-Ham."""

from hamgan.segmentation.load import load

__all__ = ["load"]

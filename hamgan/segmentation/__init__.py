"""Semantic segmentation with Hamburgers: HamNet and Light-Ham.

Importing the package is cheap: torch is imported by the part that needs it.
"""

"""hamgan: class-conditional GANs whose global context comes from Hamburger blocks.

Importing the package is cheap: torch is imported by the part that needs it.
"""

__version__ = "0.1.0"

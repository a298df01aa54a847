"""hamgan: class-conditional GANs whose global context comes from Hamburger blocks.

Importing the package is cheap: torch is imported by the part that needs it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hamgan.models.generator import Generator

__version__ = "0.1.0"


def load(path: str) -> "Generator":
    """Load a trained generator, ready to draw: `G(z, y)` gives images in [-1, 1].

    Args:
        path: A snapshot file, or a run folder, whose newest snapshot is taken.

    Returns:
        The generator in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: If there is no snapshot.
        ValueError: If it is damaged.
    """
    from pathlib import Path

    from hamgan import snapshot

    return snapshot.read(snapshot.find(Path(path))).generator

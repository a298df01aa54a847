"""hamgan: class-conditional GANs whose global context comes from Hamburger blocks.

Importing the package is cheap: torch is imported by the part that needs it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from hamgan.models.generator import Generator

__version__ = "0.1.0"


def load(path: str, *, truncation: float | None = None) -> "Generator":
    """Load a trained generator, ready to draw: `G(z, y)` gives images in [-1, 1].

    Args:
        path: A snapshot file, or a run folder, whose newest snapshot is taken.
        truncation: That will be sampled at: batch norm then takes the standing statistics that `hamgan recalibrate` has
            stored, with a warning where there are none.

    Returns:
        The generator in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: If there is no snapshot.
        ValueError: If it is damaged, or the truncation out of range.
    """
    import warnings
    from pathlib import Path

    from hamgan import snapshot

    ready = snapshot.read(snapshot.find(Path(path))).at(truncation)
    if ready.warning:
        warnings.warn(ready.warning, stacklevel=2)
    return ready.generator


def draw(
    G: "Generator",
    seeds: Sequence[int],
    classes: Sequence[int],
    *,
    truncation: float | None = None,
    z_scale: float = 1.0,
) -> "Tensor":
    """Draw image i from seed i and class i: bit for bit, on a CPU, the images of `hamgan sample`.

    Args:
        G: From `load`, for the same truncation.
        seeds: One an image.
        classes: One an image, in [0, num_classes).
        truncation: BigGAN's: components of z beyond it are drawn again.
        z_scale: What z is multiplied by, another thing.

    Returns:
        uint8 (N, 3, resolution, resolution).

    Raises:
        ValueError: If seeds and classes differ in number, or a value is out of range.
    """
    from hamgan.sampling.draw import draw_images

    return draw_images(G, seeds, classes, truncation, z_scale)

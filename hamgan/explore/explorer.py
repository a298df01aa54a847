"""What the page shows, drawn without a page: one image, its codes, two pinned images and the way between them."""

import threading
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hamgan import snapshot
from hamgan.gallery import title_of
from hamgan.models.generator import Generator
from hamgan.nn.hamburger import Hamburger
from hamgan.sampling.codes import draw_with_codes, overlay, segment_colors
from hamgan.sampling.draw import draw_latents, joined
from hamgan.sampling.interpolate import CURVES, Curve, linear
from hamgan.sampling.latents import seeded_latents
from hamgan.sampling.output import Drawer
from hamgan.sampling.sheet import default_zoom
from hamgan.sampling.store import SampleList

MAX_SEED = 2**53 - 1
"""What a browser's numbers hold exactly."""
NUM_FRAMES = 9
"""Of the way between two pinned images, both included; with the other pictures they fit one forward pass."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """What an image is drawn from, the truncation apart."""

    seed: int
    """0..MAX_SEED."""
    first: int = 0
    """A class."""
    second: int = 0
    """The class that is mixed in."""
    share: float = 0.0
    """Of the second class, 0..1."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed is {self.seed}; it must be in 0..{MAX_SEED}")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}; it must be in 0..1")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the page's controls say."""

    point: Point
    truncation: float | None = None
    """Of every picture, as in `sampling.latents`."""
    pins: tuple[Point | None, Point | None] = (None, None)
    """The images to go between."""
    position: float = 0.5
    """How far from the first to the second, 0..1."""
    curve: Curve = "spherical"
    """Of the latents; classes go in a straight line."""
    codes: bool = False
    """Whether the ham's codes are drawn."""
    ham: int = 0
    """Which ham's."""
    strength: float = 0.75
    """Of the codes' colours, 0..1."""

    def __post_init__(self) -> None:
        if not 0 <= self.position <= 1:
            raise ValueError(f"position is {self.position}; it must be in 0..1")
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is {self.strength}; it must be in 0..1")
        if self.curve not in CURVES:
            raise ValueError(f"curve is {self.curve!r}; it must be {' or '.join(CURVES)}")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The pictures, uint8; None: not asked for."""

    image: Tensor
    """(3, H, W)."""
    codes: Tensor | None
    """The image tinted by its segments, (3, zoom * H, zoom * W)."""
    pins: tuple[Tensor | None, Tensor | None]
    """(3, H, W) each."""
    between: Tensor | None
    """The image at the position, (3, H, W)."""
    way: Tensor | None
    """From the first pin to the second, (NUM_FRAMES, 3, H, W)."""
    warning: str
    """Of the truncation's batch-norm statistics; empty: none."""


class Explorer:
    """Draws what a page asks for; may be asked by several threads."""

    def __init__(self, shot: snapshot.Snapshot, title: str, device: torch.device) -> None:
        """Take a snapshot.

        Args:
            shot: What is explored; its generator moves to the device.
            title: Which snapshot it is.
            device: Where to draw.
        """
        shot.generator.to(device)
        self.shot = shot
        self.config = shot.generator.config
        self._drawer = Drawer(G=shot.generator, class_names=shot.class_names, title=title)
        self.title = title
        self._lock = threading.Lock()

    @property
    def class_names(self) -> list[str]:
        """Every class, by its name or its number."""
        return [self._drawer.class_name(y) for y in range(self.config.num_classes)]

    @property
    def num_hams(self) -> int:
        """How many hams' codes there are; 0 for a network without a Hamburger."""
        hams = [module for module in self.shot.generator.modules() if isinstance(module, Hamburger)]
        return sum((ham.spatial_ham is not None) + (ham.channel_ham is not None) for ham in hams)

    def caption(self, point: Point) -> str:
        """Say what a point is."""
        name = self._drawer.class_name
        mixture = name(self._main(point))
        if self._is_mixed(point):
            mixture = f"{1 - point.share:.0%} {name(point.first)}, {point.share:.0%} {name(point.second)}"
        return f"{mixture}, seed {point.seed}"

    def file_name(self, point: Point, truncation: float | None) -> str:
        """Name the file that a point's image is downloaded as."""
        pure = SampleList(seeds=[point.seed], labels=[self._main(point)], class_names=self.shot.class_names)
        stem = pure.file_name(0).removesuffix(".png")
        if self._is_mixed(point):
            stem += f"-{point.share * 100:.0f}pc-of-{point.second:04d}"
        return f"{stem}{'' if truncation is None else f'-truncation{truncation:g}'}.png"

    def draw(self, request: Request) -> Scene:
        """Draw every picture that is asked for, in one forward pass, and one more for codes.

        Raises:
            ValueError: If a class or ham does not exist, or the truncation is out of range.
        """
        for point in (request.point, *request.pins):
            if point is not None and not all(0 <= y < self.config.num_classes for y in (point.first, point.second)):
                raise ValueError(
                    f"classes are {point.first} and {point.second}; they must be in 0..{self.config.num_classes - 1}"
                )
        with self._lock:  # the codes are caught by hooks, which another thread's forward pass would set off
            ready = self.shot.at(request.truncation)
            return self._draw(request, ready.generator, ready.warning)

    def _draw(self, request: Request, G: Generator, warning: str) -> Scene:
        z, y = self._inputs(request.point, request.truncation)
        latents, classes = [z[None]], [y[None]]
        ends = [None if pin is None else self._inputs(pin, request.truncation) for pin in request.pins]
        for end in ends:
            if end is not None:
                latents.append(end[0][None])
                classes.append(end[1][None])
        a, b = ends
        if a is not None and b is not None:
            t = torch.cat([torch.tensor([request.position]).double(), torch.linspace(0, 1, NUM_FRAMES).double()])
            latents.append(CURVES[request.curve](a[0].expand(len(t), -1), b[0].expand(len(t), -1), t))
            classes.append(linear(a[1].expand(len(t), -1), b[1].expand(len(t), -1), t))
        images = list(joined(G, draw_latents(G, torch.cat(latents), torch.cat(classes))))
        image = images.pop(0)
        pins = tuple(None if end is None else images.pop(0) for end in ends)
        codes = None
        if request.codes:
            drawn, found = draw_with_codes(G, z[None], y[None])
            if not 0 <= request.ham < len(found):
                raise ValueError(f"ham is {request.ham}; it must be in 0..{len(found) - 1}")
            # By the base's number: a base keeps its colour while the controls move.
            colors = segment_colors(found[request.ham].segments.shape[1])
            zoom = 2 * default_zoom(self.config.resolution)
            codes = overlay(drawn, found[request.ham], colors, zoom=zoom, strength=request.strength)[0]
        return Scene(
            image=image,
            codes=codes,
            pins=(pins[0], pins[1]),
            between=images[0] if images else None,
            way=torch.stack(images[1:]) if images else None,
            warning=warning,
        )

    def _inputs(self, point: Point, truncation: float | None) -> tuple[Tensor, Tensor]:
        """Return a latent (z_dim,) and weights of the classes (num_classes,)."""
        corners = F.one_hot(torch.tensor([point.first, point.second]), self.config.num_classes).float()
        weights = linear(corners[:1], corners[1:], torch.tensor([point.share]))[0]
        return seeded_latents([point.seed], self.config.z_dim, truncation)[0], weights

    def _is_mixed(self, point: Point) -> bool:
        return 0 < point.share < 1 and point.first != point.second

    def _main(self, point: Point) -> int:
        """Return the only class, or the one that the other is mixed into."""
        return point.second if point.share == 1 else point.first


def open_explorer(source: Path, device: torch.device) -> Explorer:
    """Read a snapshot, or a run folder's newest.

    Raises:
        FileNotFoundError: If there is no snapshot.
        ValueError: If it is damaged.
    """
    path = snapshot.find(source)
    shot = snapshot.read(path)
    return Explorer(shot, f"{path}, {title_of(path, shot)}", device)

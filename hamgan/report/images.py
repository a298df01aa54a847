"""A run's pictures, made small enough to travel inside one file.

The rule: at most `MAX_GRIDS` grids and `BUDGET` bytes, the first and the last always among them and the others evenly
between. They are the run's own PNGs where those of at least `MIN_EXACT` grids (or of all) fit; else each is scaled to
`MAX_SIDE` pixels and coded anew, lossily, and if that is still too much, every other grid is left out until it fits.
"""

import base64
import io
import re
import struct
from dataclasses import dataclass

from PIL import Image

from hamgan.report.folder import RunReader

MAX_GRIDS = 40
MIN_EXACT = 20
BUDGET = 8_000_000
"""Bytes of all grids together; base64 makes a third more of them."""
MAX_CARD = 1_000_000
"""Bytes of an evaluation's picture."""
MAX_SIDE = 1400
"""Pixels."""
QUALITY = 82
"""Of WebP."""
MAX_FILE = 64_000_000
"""Largest file that is read, bytes."""
MAX_PIXELS = 64_000_000
"""Largest picture that a reader's browser is asked to open."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image as a page can hold it."""

    step: int
    """Of the grid; -1: of none."""
    width: int
    """Pixels, of the original."""
    height: int
    kind: str
    """`png` or `webp`."""
    content: bytes

    @property
    def uri(self) -> str:
        """The image as an address."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.content).decode()}"


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A run's grids over time."""

    grids: list[Picture]
    """By step."""
    num_grids: int
    """In the folder."""
    real: Picture | None
    """Real images in the same arrangement."""

    @property
    def is_exact(self) -> bool:
        """Whether the pictures are the run's own files."""
        return all(picture.kind == "png" for picture in self.grids)


def read_picture(run: RunReader, name: str, folder: str = "", step: int = -1) -> Picture | None:
    """Read a PNG; None where it is missing, none, torn or too large to be shown."""
    content = run.read(name, MAX_FILE, folder)
    if content is None or not content.startswith(PNG_SIGNATURE) or not content.endswith(PNG_END):
        return None
    width, height = struct.unpack(">II", content[16:24])
    if not 0 < width * height <= MAX_PIXELS:
        return None
    return Picture(step=step, width=width, height=height, kind="png", content=content)


def shrunk(picture: Picture) -> Picture | None:
    """Return a picture scaled to `MAX_SIDE` and coded lossily; None where it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(picture.content), formats=("PNG",)) as image:
            rgb = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    rgb.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    rgb.save(stream, "WEBP", quality=QUALITY)
    size = {"width": picture.width, "height": picture.height}
    return Picture(step=picture.step, kind="webp", content=stream.getvalue(), **size)


def spread(count: int, number: int) -> list[int]:
    """Return at most `number` of the indices below `count`, the first and the last among them, evenly spread."""
    if count <= number:
        return list(range(count))
    if number == 1:
        return [count - 1]
    return sorted({round(i * (count - 1) / (number - 1)) for i in range(number)})


def read_pictures(run: RunReader, budget: int = BUDGET) -> Pictures:
    """Read the grids and the real images, by the rule above."""
    entries = run.files("samples")
    steps = {int(match[1]): e for e in entries if (match := re.fullmatch(r"([0-9]{1,15})\.png", e.name))}
    order = sorted(steps)
    real = read_picture(run, "real.png", "samples")
    if real is not None and len(real.content) > budget // 4:
        real = shrunk(real)
    left = budget - (len(real.content) if real else 0)

    for number in (MAX_GRIDS, (MAX_GRIDS + MIN_EXACT) // 2, MIN_EXACT):
        chosen = [order[i] for i in spread(len(order), number)]
        if sum(steps[step].size for step in chosen) <= left:
            exact = [read_picture(run, steps[step].name, "samples", step) for step in chosen]
            return Pictures(grids=[p for p in exact if p], num_grids=len(order), real=real)

    small = []
    for step in [order[i] for i in spread(len(order), MAX_GRIDS)]:
        picture = read_picture(run, steps[step].name, "samples", step)
        if picture and (picture := shrunk(picture)):
            small.append(picture)
    while len(small) > 1 and sum(len(picture.content) for picture in small) > left:
        small = [small[i] for i in spread(len(small), len(small) // 2)]
    return Pictures(grids=small, num_grids=len(order), real=real)

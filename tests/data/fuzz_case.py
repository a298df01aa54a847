"""What all kinds of mutated data files have in common: whole files, a change, and how the result is read."""

import contextlib
import gzip
import io
import random
import tempfile
from pathlib import Path
from typing import Any

from tiny_images import encode, noise

from hamgan.data.build import build
from hamgan.data.hdf5 import TrainingFile

PNGS = {f"set/{c}/{i}.png": encode(noise(i, 16, 16)) for c in ("ant", "bee") for i in range(3)}
BOMB = gzip.compress(bytes(2**29), 1)
"""Half a gigabyte in two megabytes."""


class DataFuzz:
    """One kind of file: whole ones, how to change them, and how they are read."""

    name = "case"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "case"
        self.folder.mkdir()
        self.canary = root / "canary"
        self.prepare()

    def prepare(self) -> None:
        """Make the whole files."""

    def content(self, rng: random.Random) -> bytes:
        """Make a case."""
        raise NotImplementedError

    def write(self, rng: random.Random) -> Path:
        path = self.folder / self.name
        path.write_bytes(self.content(rng))
        return path

    def read(self, path: Path) -> None:
        """Read it as `hamgan data` does; raises ValueError or OSError with one line."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                self.use(path)
            except (ValueError, OSError) as error:
                # As the command line prints it: one line of our own, not what an inner library happens to say.
                if "\n" in str(error) or isinstance(error, UnicodeError):
                    raise AssertionError(f"{type(error).__name__}: {error}") from error
                raise

    def use(self, path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.h5"
            build(path, out, resolution=8, workers=1, skip_bad=True, **self.options())
            TrainingFile(out).read([0])

    def options(self) -> dict[str, Any]:
        return {}

"""Mutated training files, ours and other frameworks'."""

import contextlib
import io
import random
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from fuzz_case import PNGS, DataFuzz
from fuzz_files import NASTY, change_bytes
from tiny_images import noise

from hamgan.data import format as file_format
from hamgan.data.build import build
from hamgan.data.hdf5 import TrainingFile
from hamgan.data.info import info_text
from hamgan.data.verify import verify


class Training(DataFuzz):
    """Our own files: bytes changed blindly; or the header, with its checksum made right, as a stranger would."""

    name = "case.h5"

    def prepare(self) -> None:
        for shard in (None, "1/2", "2/2"):
            with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "x.zip"
                with zipfile.ZipFile(path, "w") as archive:
                    for key, data in PNGS.items():
                        archive.writestr(key, data)
                build(path, Path(folder) / "x.h5", resolution=8, workers=1, shard=shard)
                data = (Path(folder) / "x.h5").read_bytes()
            if shard is None:
                self.data = data
            else:
                (self.root / f"part{shard[0]}.h5").write_bytes(data)

    def content(self, rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return change_bytes(self.data, rng)
        buffer = io.BytesIO(self.data)
        with h5py.File(buffer, "r+") as file:
            for _ in range(rng.choice((1, 1, 2))):
                self._change(file, rng)
            if rng.random() < 0.8:
                self._make_right(file)
        return buffer.getvalue()

    def _change(self, file: h5py.File, rng: random.Random) -> None:
        name = rng.choice(list(file.attrs) + list(file) * 2)
        with contextlib.suppress(TypeError, ValueError, OverflowError, RuntimeError, OSError, KeyError, UnicodeError):
            if name in file.attrs:
                value = rng.choice([*NASTY, np.arange(3), np.int64(2**62), np.int64(-1), np.uint64(2**64 - 1)])
                del file.attrs[name]
                if rng.random() < 0.9:
                    file.attrs[name] = value
                return
            del file[name]
            match rng.randrange(8):
                case 0:
                    pass
                case 1:
                    file.create_group(name)
                case 2:
                    file[name] = rng.choice(NASTY)
                case 3:
                    values = rng.choice(
                        (
                            np.full(6, -1),
                            np.full(6, 2**62),
                            np.full(6, np.nan),
                            np.zeros((6, 2)),
                            np.zeros(0),
                            np.arange(6),
                        )
                    )
                    file[name] = values
                case 4:
                    shape = rng.choice(((2**40,), (2**62,), (6, 2**30), (2**33, 8, 8, 3)))
                    file.create_dataset(name, shape, rng.choice(("u1", "<i8", "S3")), chunks=True)
                case 5:
                    file[name] = h5py.SoftLink(rng.choice(("/nowhere", "/" + name, "/labels", "/")))
                case 6:
                    file[name] = h5py.ExternalLink(
                        rng.choice(("part1.h5", "/etc/passwd", "case.h5")), rng.choice(("labels", "/"))
                    )
                case 7:
                    text = h5py.string_dtype("utf-8", 3)
                    file[name] = np.asarray([b"\xff\xfe\n", b"a", b"a", b"b", b"", b"\0"], text)
            if rng.random() < 0.3:
                file["part_names"] = np.asarray(
                    [rng.choice(("../part1.h5", "case.h5", "/dev/zero", "", ".")).encode()] * 2
                )
                file["part_counts"] = rng.choice((np.asarray([3, 3]), np.asarray([-3, 9]), np.asarray([2**62, 0])))

    def _make_right(self, file: h5py.File) -> None:
        """Put the right checksum and counts on what the header now says, if it can be said."""

        class SeenError(Exception):
            pass

        def remember(header: file_format.Header) -> int:
            raise SeenError(original(header))

        original = file_format.Header.checksum
        for name in list(file):
            with contextlib.suppress(Exception):  # odd links
                if isinstance(file[name], h5py.Dataset) and name != "images" and file[name].size > 10**6:
                    return
        file_format.Header.checksum = remember  # type: ignore[method-assign, assignment]
        try:
            file_format.read_header(file, Path("case.h5"))
        except SeenError as seen:
            file.attrs["header_crc32"] = seen.args[0]
            with contextlib.suppress(Exception):
                counts = np.bincount(file["labels"][...].astype(np.int64), minlength=len(file["class_names"]))
                if "class_counts" in file:
                    del file["class_counts"]
                file["class_counts"] = counts
        except Exception:  # it cannot
            pass
        finally:
            file_format.Header.checksum = original  # type: ignore[method-assign]

    def use(self, path: Path) -> None:
        with TrainingFile(path) as file:
            file.read(np.arange(min(8, len(file)))[::-1])
        info_text(path)
        verify(path)


class Foreign(DataFuzz):
    """Files of BigGAN-PyTorch and StudioGAN: plain, in chunks, compressed."""

    name = "case.hdf5"

    def whole(self, rng: random.Random) -> bytes:
        buffer = io.BytesIO()
        images = noise(3, 6 * 8, 8).reshape(6, 3, 8, 8)
        labels: Any = np.arange(6) % 2
        odd = rng.random() < 0.5
        with h5py.File(buffer, "w", libver=rng.choice(("earliest", "latest"))) as file:
            options: Any = rng.choice(
                (
                    {},
                    {"chunks": (2, 3, 8, 8)},
                    {"chunks": (4, 3, 4, 8)},
                    {"chunks": (2, 3, 8, 8), "compression": "gzip"},
                )
            )
            if odd and rng.random() < 0.5:
                shape = rng.choice(
                    (
                        (2**40, 3, 8, 8),
                        (6, 3, 2**20, 2**20),
                        (6, 3, 0, 0),
                        (0, 3, 8, 8),
                        (6, 3, 8),
                        (2**31, 3, 8, 8),
                        (6, 3, 9, 9),
                    )
                )
                file.create_dataset(
                    "imgs",
                    shape,
                    "u1",
                    chunks=(1, *shape[1:]) if np.prod(shape, dtype=float) > 0 and np.prod(shape[1:]) < 2**20 else None,
                )
            elif odd and rng.random() < 0.2:
                file.create_group("imgs")
            else:
                file.create_dataset("imgs", data=images, **options)
            if odd and rng.random() < 0.5:
                labels = rng.choice((
                    np.full(6, 2**62), np.full(6, 2**31), np.full(6, np.nan), np.full(6, np.inf),
                    np.zeros((6, 1)), np.float32(3),
                    np.asarray([b"a"] * 6), np.full(6, 2**64 - 1, np.uint64), np.zeros(6, "c8"), np.arange(6) - 0.5,
                ))  # fmt: skip
                file["labels"] = labels
            elif odd and rng.random() < 0.4:
                file.create_dataset("labels", rng.choice(((2**40,), (2**33,))), "<i8", chunks=True)
                del file["imgs"]
                file.create_dataset("imgs", (file["labels"].shape[0], 3, 8, 8), "u1", chunks=(64, 3, 8, 8))
            elif odd and rng.random() < 0.3:
                file["labels"] = h5py.SoftLink("/labels")
            else:
                file["labels"] = labels
        return buffer.getvalue()

    def content(self, rng: random.Random) -> bytes:
        data = self.whole(rng)
        return change_bytes(data, rng) if rng.random() < 0.6 else data

    def use(self, path: Path) -> None:
        with TrainingFile(path) as file:
            file.read(np.arange(min(8, len(file)))[::-1])
        info_text(path)

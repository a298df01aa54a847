"""Mutates training files and sources at random and opens or builds them, as `fuzz_files` does with other files.

Run: python tests/data/fuzz_data.py training|foreign|zip|tar|mat|meta|table|cifar|idx|all [COUNT] [SEED]
"""

import contextlib
import gzip
import io
import pickle
import random
import struct
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import h5py
import numpy as np
from fuzz_files import NASTY, change_bytes, change_value, main
from matwriter import mat_file
from tiny_images import encode, noise

from hamgan.data import format as file_format
from hamgan.data.build import build
from hamgan.data.hdf5 import TrainingFile
from hamgan.data.imagenet import read_validation_labels
from hamgan.data.info import info_text
from hamgan.data.verify import verify

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


class Zip(DataFuzz):
    name = "case.zip"

    def prepare(self) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", 8) as archive:
            archive.writestr("ant/bomb.png", bytes(2**29))
        self.bomb = buffer.getvalue()

    def content(self, rng: random.Random) -> bytes:
        if rng.random() < 0.02:
            return self.bomb
        buffer = io.BytesIO()
        files = dict(PNGS)
        if rng.random() < 0.2:
            files[
                rng.choice(
                    (
                        "../x/1.png",
                        "/a/1.png",
                        "set/ant/\0.png",
                        "set/\n/1.png",
                        "a" * 4000 + "/1.png",
                        "//.png",
                        "é/1.png",
                    )
                )
            ] = b"x"
        with zipfile.ZipFile(buffer, "w", rng.choice((0, 8))) as archive:
            for key, data in files.items():
                archive.writestr(key, data)
        data = buffer.getvalue()
        if rng.random() < 0.5:
            return change_bytes(data, rng)
        out = bytearray(data)
        place = data.index(b"PK\x01\x02", rng.choice((0, data.rindex(b"PK\x01\x02"))))
        at, form = rng.choice(
            ((8, "H"), (10, "H"), (16, "I"), (20, "I"), (24, "I"), (28, "H"), (30, "H"), (32, "H"), (42, "I"))
        )
        struct.pack_into(
            "<" + form,
            out,
            place + at,
            rng.choice((0, 1, 8, 12, 2**16 - 1, 2**32 - 1, 2**31)) & (2**16 - 1 if form == "H" else 2**32 - 1),
        )
        if rng.random() < 0.3:  # sizes of 64 bits
            extra = struct.pack("<HHQQQ", 1, 24, *(rng.choice((2**64 - 1, 2**63, 2**40, 5)) for _ in range(3)))
            with zipfile.ZipFile(io.BytesIO(data)) as whole:
                start = whole.start_dir
            name = struct.unpack_from("<H", data, start + 28)[0]
            out = bytearray(data)
            struct.pack_into("<IIHHH", out, start + 20, 2**32 - 1, 2**32 - 1, name, len(extra), 0)
            struct.pack_into("<I", out, start + 42, 2**32 - 1)
            out[start + 46 + name : start + 46 + name] = extra
            end = out.rindex(b"PK\x05\x06")
            struct.pack_into("<I", out, end + 12, struct.unpack_from("<I", out, end + 12)[0] + len(extra))
        return bytes(out)


class Tar(DataFuzz):
    name = "case.tar"

    def content(self, rng: random.Random) -> bytes:
        form = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))

        def tar(files: dict[str, bytes]) -> bytes:
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
                for key, data in files.items():
                    info = tarfile.TarInfo(key)
                    info.size = len(data)
                    if form == tarfile.PAX_FORMAT and rng.random() < 0.2:
                        info.pax_headers = {
                            rng.choice(("size", "path", "GNU.sparse.size", "mtime")): rng.choice(
                                ("-1", "9" * 30, "1e9", "", "x/1.png")
                            )
                        }
                    archive.addfile(info, io.BytesIO(data))
            return buffer.getvalue()

        files = {key.removeprefix("set/"): data for key, data in PNGS.items()}
        if rng.random() < 0.4:
            inner = {
                c: tar({key.split("/")[1]: data for key, data in files.items() if key.startswith(c)})
                for c in ("ant", "bee")
            }
            for _ in range(rng.choice((0, 0, 1, 40))):
                inner["ant"] = tar({"x.tar": inner["ant"]})
            files = {f"{c}.tar": data for c, data in inner.items()}
        data = tar(files)
        if rng.random() < 0.3:
            out = bytearray(data)
            start = rng.randrange(0, min(len(out), 4000), 512)
            field = rng.choice(
                (
                    b"77777777777\0",
                    b"-0000000001\0",
                    b"\x80" + b"\xff" * 11,
                    b"\xff" * 12,
                    b"\x80" + bytes(7) + b"\x7f\0\0\0",
                    b"zzzzzzzzzzz\0",
                )
            )
            out[start + 124 : start + 136] = field
            if rng.random() < 0.3:
                out[start + 156] = rng.choice(b"0LKSxg12345 ")
            out[start + 148 : start + 156] = b" " * 8
            out[start + 148 : start + 156] = b"%06o\0 " % sum(out[start : start + 512])
            data = bytes(out)
        elif rng.random() < 0.7:
            data = change_bytes(data, rng)
        if rng.random() < 0.2:
            packed = gzip.compress(data, 1)
            return change_bytes(packed, rng) if rng.random() < 0.7 else packed
        return data


class Mat(DataFuzz):
    name = "train_32x32.mat"

    def prepare(self) -> None:
        images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 2), np.uint8)
        self.whole = [
            mat_file({"X": images, "y": np.asarray([[1], [2]], np.uint8)}, compressed=packed)
            for packed in (False, True)
        ]

    def content(self, rng: random.Random) -> bytes:
        return change_bytes(rng.choice(self.whole), rng) if rng.random() < 0.6 else self._aimed(rng)

    def _aimed(self, rng: random.Random) -> bytes:
        """Change the plain content within its first elements and pack it again."""
        import zlib

        plain = bytearray(self.whole[0][128:])
        at = rng.randrange(0, 80, 4) if rng.random() < 0.8 else len(plain) - rng.randrange(1, 20) * 4
        struct.pack_into("<I", plain, at, rng.choice((0, 1, 2, 5, 9, 14, 15, 2**31, 2**32 - 1, 2**30, 10**6)))
        if rng.random() < 0.5:
            return self.whole[0][:128] + bytes(plain)
        first = struct.unpack_from("<I", self.whole[0], 132)[0] + 8
        out = self.whole[0][:128]
        for piece in (bytes(plain[:first]), bytes(plain[first:])):
            packed = zlib.compress(piece)
            out += struct.pack("<II", 15, len(packed)) + packed
        return out


class Meta(Mat):
    """ImageNet's class list, beside its ground truth."""

    name = "meta.mat"

    def prepare(self) -> None:
        (self.root / "truth").mkdir()
        self.truth = self.root / "truth" / "ILSVRC2012_validation_ground_truth.txt"
        self.truth.write_text("1\n2\n")
        synsets = [{"ILSVRC2012_ID": np.float64(i), "WNID": f"n{i:08d}"} for i in range(1, 1001)]
        self.whole = [mat_file({"synsets": synsets}, compressed=packed) for packed in (False, True)]

    def use(self, path: Path) -> None:
        beside = self.truth.with_name("meta.mat")
        beside.write_bytes(path.read_bytes())
        try:
            read_validation_labels(self.truth, None)
        finally:
            beside.unlink()


class Table(DataFuzz):
    name = "labels.csv"
    texts = (
        "path,label\nset/ant/0.png,ant\nset/bee/0.png,bee\n", "set/ant/0.png,0\nset/bee/0.png,1\nset/bee/1.png,1\n",
        "0.png ant\n0.png bee\n", '"set/ant/0.png","0"\n"set/bee/0.png","1"\n', "1\n2\n",
    )  # fmt: skip

    def prepare(self) -> None:
        self.archive = self.root / "whole.zip"
        with zipfile.ZipFile(self.archive, "w") as archive:
            for key, data in PNGS.items():
                archive.writestr(key, data)
        self.classes = self.root / "classes.txt"
        self.classes.write_text("ant\nbee\n")

    def content(self, rng: random.Random) -> bytes:
        text = rng.choice(self.texts)
        if rng.random() < 0.5:
            return change_bytes(text.encode(), rng)
        word = rng.choice(
            (
                "9" * 5000,
                "-1",
                "1e9",
                "\0",
                '"',
                '"' * 3,
                "²",
                "٣",
                "x" * 200_000,
                "../../../etc/passwd",
                "\r",
                "\u2028",
                "\udcff",
                "--1",
                "-",
                ",,",
                "+1",
                " ",
                "\ufeff",
            )
        )
        old = rng.choice([part for part in text.replace("\n", ",").split(",") if part])
        return text.replace(old, rng.choice((word, old + word, word + old)), 1).encode("utf-8", "surrogatepass")

    def use(self, path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for number, classes in enumerate((None, self.classes, path)):
                with contextlib.suppress(ValueError, OSError) if number else contextlib.nullcontext():
                    build(
                        self.archive,
                        Path(folder) / f"{number}.h5",
                        resolution=8,
                        workers=1,
                        labels=path,
                        classes=classes,
                    )


class Cifar(DataFuzz):
    name = "cifar-10-python.tar.gz"

    def content(self, rng: random.Random) -> bytes:
        pixels = np.random.default_rng(0).integers(0, 256, (2, 3072), np.uint8)
        names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
        victim = rng.choice((*names[:2], names[-1]))
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name in names:
                value: Any = (
                    {"label_names": [str(i) for i in range(10)]}
                    if name == names[-1]
                    else {"data": pixels, "labels": [0, 1]}
                )
                if name == victim and rng.random() < 0.6:
                    value = change_value(value, rng)
                data = pickle.dumps(value, rng.choice((2, 4)))
                if name == victim and rng.random() < 0.4:
                    data = change_bytes(data, rng)
                if name == victim and rng.random() < 0.1:
                    data = rng.choice((
                        b"\x80\x04\x8e" + struct.pack("<Q", 2**62), b"cos\nsystem\n(S'touch canary'\ntR.", b"(" * 10**5,
                        b"\x80\x02cnumpy\nndarray\nK\x01J\xff\xff\xff\x7f\x86\x85R.", b"\x80\x04j\xff\xff\xff\x7f.",
                        b"]" + b"(]" * 10**5 + b"e" * 10**5 + b".",
                        b"\x80\x02cnumpy\nndarray\n\x8a\x05\0\0\0\0\x02\x85\x85R.",
                    ))  # fmt: skip
                info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        data = gzip.compress(buffer.getvalue(), 1)
        return change_bytes(data, rng) if rng.random() < 0.2 else data


class Idx(DataFuzz):
    name = "train-images-idx3-ubyte.gz"

    def content(self, rng: random.Random) -> bytes:
        sizes = [2, 28, 28]
        if rng.random() < 0.5:
            sizes[rng.randrange(3)] = rng.choice((0, 1, 3, 2**31, 2**32 - 1))
            if rng.random() < 0.2:
                sizes = [2**32 - 1, 2**32 - 1, 2**32 - 1]
        data = struct.pack(">IIII", 0x803, *sizes) + noise(0, 28, 56)[..., 0].tobytes()
        if rng.random() < 0.4:
            data = change_bytes(data, rng)
        data = gzip.compress(data, 1)
        if rng.random() < 0.02:
            data += BOMB
        return change_bytes(data, rng) if rng.random() < 0.4 else data

    def write(self, rng: random.Random) -> Path:
        (self.folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 2) + b"\1\2")
        return super().write(rng)

    def read(self, path: Path) -> None:
        try:
            super().read(path)
        finally:
            (self.folder / "train-labels-idx1-ubyte").unlink()


KINDS: dict[str, Callable[[Path], DataFuzz]] = {
    "training": Training, "foreign": Foreign, "zip": Zip, "tar": Tar, "mat": Mat,
    "meta": Meta, "table": Table, "cifar": Cifar, "idx": Idx,
}  # fmt: skip


if __name__ == "__main__":
    chosen = list(KINDS) if sys.argv[1] == "all" else [sys.argv[1]]
    sys.exit(sum(main(kind, *map(int, sys.argv[2:]), kinds=KINDS) for kind in chosen) > 0)

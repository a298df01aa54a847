"""Mutated files of published data sets, and tables of labels."""

import contextlib
import gzip
import io
import pickle
import random
import struct
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_case import BOMB, PNGS, DataFuzz
from fuzz_files import change_bytes, change_value
from matwriter import mat_file
from tiny_images import noise

from hamgan.data.build import build
from hamgan.data.imagenet import read_validation_labels


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

"""Mutated zip and tar archives."""

import gzip
import io
import random
import struct
import tarfile
import zipfile

from fuzz_case import PNGS, DataFuzz
from fuzz_files import change_bytes


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

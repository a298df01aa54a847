"""What a build writes, and how: in pieces, early, past the system's cache; always the same bytes."""

import errno
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from tiny_images import write_class_folders

from hamgan.data import build as build_module
from hamgan.data import direct, fileio
from hamgan.data import staging as staging_module
from hamgan.data import worker as worker_module
from hamgan.data.build import build
from hamgan.data.direct import ALIGNMENT, DirectFile, images_at_once, page_memory
from hamgan.data.format import BLOCK_IMAGES
from hamgan.data.hdf5 import TrainingFile


def test_checksums_are_zlibs_whoever_computes_them(tmp_path: Path) -> None:
    # A file built where isal is installed is verified where it is not.
    rng = np.random.default_rng(0)
    data = rng.bytes(3 * fileio._PIECE + 77)
    for size in (0, 1, 15, 16, 17, 63, 64, 255, 49_152, len(data)):
        for start in (0, 0xDEADBEEF):
            assert fileio.crc32(data[:size], start) == zlib.crc32(data[:size], start)
    path = tmp_path / "bytes"
    path.write_bytes(data)
    with open(path, "rb") as file:
        for size, position in ((0, 0), (1, 5), (fileio._PIECE, 3), (len(data), 0), (len(data), 9)):
            expected = zlib.crc32(data[position : position + size])
            assert fileio.crc32_at(file.fileno(), size, position) == expected


def test_blocks_written_in_pieces_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_class_folders(tmp_path / "s", {"a": 70, "b": 5})
    (tmp_path / "s" / "a" / "000.png").write_bytes(b"no image")
    build(tmp_path / "s", tmp_path / "whole.h5", resolution=16, workers=1, skip_bad=True)
    expected = (tmp_path / "whole.h5").read_bytes()
    for images in (1, 3, 63, 64, 65):
        monkeypatch.setattr(worker_module, "images_at_once", lambda size, images=images: (images, False))
        build(tmp_path / "s", tmp_path / f"{images}.h5", resolution=16, workers=1, skip_bad=True)
        assert (tmp_path / f"{images}.h5").read_bytes() == expected


def test_writing_is_begun_early_for_each_block_and_is_never_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_class_folders(tmp_path / "source", {"a": 70}, size=16)
    ranges: list[tuple[int, int]] = []

    def begin(fd: int, position: int, size: int, flags: int) -> int:
        ranges.append((position, size))
        return -1  # as on a file system that cannot

    for name, function in (("early", begin), ("never", None)):
        monkeypatch.setattr(fileio, "_sync_file_range", lambda function=function: function)
        build(tmp_path / "source", tmp_path / f"{name}.h5", resolution=16, workers=1)
    assert (tmp_path / "early.h5").read_bytes() == (tmp_path / "never.h5").read_bytes()
    start = ranges[0][0]
    assert ranges == [(start, 64 * 768), (start + 64 * 768, 6 * 768)]


@pytest.fixture
def file(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(bytes(8 * ALIGNMENT))
    fd = os.open(path, os.O_RDWR)
    yield path, fd
    os.close(fd)


def takes_direct_writes(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    except (AttributeError, OSError):
        return False
    os.close(fd)
    return True


def refuse(number: int):
    def call(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("refused", ["", "open", "write"])
def test_pages_arrive_whether_or_not_the_file_system_takes_them_directly(
    file: tuple[Path, int], monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    path, fd = file
    pages = page_memory(3 * ALIGNMENT)
    pages[:] = np.random.default_rng(0).bytes(len(pages))
    expected = bytearray(path.read_bytes())
    with monkeypatch.context() as patch:
        if refused == "open":
            patch.setattr(direct.os, "open", refuse(errno.EINVAL))
        target = DirectFile(path, fd, direct=True)
        if refused == "write":
            patch.setattr(
                direct, "write_all", lambda to, *rest: refuse(22)() if to != fd else fileio.write_all(to, *rest)
            )
            patch.setattr(direct.os, "preadv", refuse(errno.EINVAL) if target._direct >= 0 else os.preadv)
            patch.setattr(direct, "crc32_at", lambda fd, size, at: zlib.crc32(os.pread(fd, size, at)))
        for position, size in (
            (ALIGNMENT, 2 * ALIGNMENT),
            (5 * ALIGNMENT + 1, ALIGNMENT),
            (7, 100),
            (4 * ALIGNMENT, 512),
        ):
            target.write(pages[:size], position)
            expected[position : position + size] = pages[:size]
            for first, count in ((position, size), (0, 8 * ALIGNMENT), (ALIGNMENT, 9 * ALIGNMENT), (3, 4096)):
                assert target.crc32(count, first) == zlib.crc32(expected[first : first + count])
        target.close()
        if refused == "write":  # a read alone is refused too
            unread = DirectFile(path, fd, direct=True)
            assert unread.crc32(ALIGNMENT, ALIGNMENT) == zlib.crc32(expected[ALIGNMENT : 2 * ALIGNMENT])
            unread.close()
    assert path.read_bytes() == expected


def test_a_build_past_the_cache_has_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_class_folders(tmp_path / "s", {"a": 100, "b": 45}, size=64)
    (tmp_path / "s" / "a" / "003.png").write_bytes(b"no image")
    options = {"resolution": 64, "skip_bad": True}
    build(tmp_path / "s", tmp_path / "cached.h5", workers=1, **options)  # type: ignore[arg-type]
    expected = (tmp_path / "cached.h5").read_bytes()
    monkeypatch.setattr(staging_module, "_DIRECT_FROM", 0)
    written = []
    write = DirectFile.write
    monkeypatch.setattr(
        DirectFile, "write", lambda self, data, at: (written.append(self._takes(len(data), at)), write(self, data, at))
    )
    for workers in (1, 2):
        build(tmp_path / "s", tmp_path / f"{workers}.h5", workers=workers, **options)  # type: ignore[arg-type]
        assert (tmp_path / f"{workers}.h5").read_bytes() == expected
    assert any(written) == takes_direct_writes(tmp_path / "probe")


def test_a_block_that_the_disk_changes_is_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_class_folders(tmp_path / "s", {"a": 130}, size=64)
    decoded, write = [], DirectFile.write

    def damage_the_second_block_once(self: DirectFile, data: memoryview, position: int) -> None:
        write(self, data, position)
        decoded.append(position)
        if len(decoded) == 3:
            os.pwrite(self._fd, bytes([data[5] ^ 1]), position + 5)

    monkeypatch.setattr(DirectFile, "write", damage_the_second_block_once)
    monkeypatch.setattr(worker_module, "images_at_once", lambda size: (32, True))
    build(tmp_path / "s", tmp_path / "out.h5", resolution=64, resize="none", workers=1)
    assert len(decoded) == 5 + 2 and decoded[2:4] == decoded[5:]
    with TrainingFile(tmp_path / "out.h5") as out:
        np.testing.assert_array_equal(out.read(range(130)), [images[key] for key in sorted(images)])


@pytest.mark.parametrize("resolution", [8, 32, 64, 96, 100, 112, 128, 224, 225, 256, 1024, 4096])
def test_pieces_are_whole_pages_where_they_can_be(resolution: int) -> None:
    size = resolution * resolution * 3
    count, whole = images_at_once(size)
    assert 1 <= count <= BLOCK_IMAGES and count * size <= max(2**20, size)
    assert whole == (resolution not in (100, 225))
    if whole:
        assert count * size % ALIGNMENT == 0 and BLOCK_IMAGES % count * size % ALIGNMENT == 0


def test_a_write_that_fails_is_said_even_if_it_was_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_class_folders(tmp_path / "s", {"a": 3}, size=16)
    monkeypatch.setattr(DirectFile, "write", refuse(errno.EIO))
    with pytest.raises(OSError, match=r"out\.h5: Input/output error; what is done is kept"):
        build_module.build(tmp_path / "s", tmp_path / "out.h5", resolution=16, workers=1)
    assert not (tmp_path / "out.h5").exists()

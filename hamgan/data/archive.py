"""Zip and tar archives, read in place: a pass over the headers makes the list, then images are read by offset."""

import os
import struct
import tarfile
import zipfile
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hamgan.data.labels import LabelTable
from hamgan.data.source import Keys, Locator, Reader, Source, is_image_name

_STORED, _DEFLATED = 0, 8
_LARGEST_IMAGE = 2**27  # bytes that an image in a zip may unpack to: a small zip can hold gigabytes of zeros
_LONGEST_NAME = 1000


class RangeReader(Reader):
    """Reads byte ranges of one file; a locator is (offset, size) or, in a zip, (header offset, size, method, crc)."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"_path": self._path, "_file": None}

    def _pread(self, offset: int, size: int) -> bytes:
        if self._file is None:
            self._file = os.open(self._path, os.O_RDONLY)
        data = os.pread(self._file, size, offset)
        if len(data) < size:
            raise OSError(f"{self._path} ends at byte {offset + len(data)}")
        return data

    def read(self, locator: Locator) -> bytes:
        """Return one member's bytes, decompressed and checked if it is in a zip."""
        if len(locator) == 2:
            return self._pread(*locator)
        header_offset, size, method, crc = locator
        # The local header repeats the name and has its own extra field, so only it tells where the data starts.
        header = self._pread(header_offset, 30)
        if header[:4] != b"PK\x03\x04":
            raise ValueError("damaged zip: no member starts where its directory says")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        data = self._pread(header_offset + 30 + name_length + extra_length, size)
        if method == _DEFLATED:
            inflate = zlib.decompressobj(-15)
            try:
                data = inflate.decompress(data, _LARGEST_IMAGE)
            except zlib.error as error:
                raise ValueError(f"damaged in the zip ({error})") from None
            if not inflate.eof:
                raise ValueError(f"truncated in the zip, or larger than {_LARGEST_IMAGE >> 20} MiB")
        if zlib.crc32(data) != crc:
            raise ValueError("damaged in the zip (CRC differs)")
        return data


class ArchiveSource(Source):
    """Members of a zip or of an uncompressed tar; a key is the member's name."""

    def __init__(self, path: Path, keys: Sequence[str], labels: NDArray[np.int64], locators: NDArray[np.int64],
                 sizes: NDArray[np.int64], class_names: Sequence[str], data_path: Path, *,
                 allow_empty: bool = False) -> None:  # fmt: skip
        self._data_path = data_path
        self._locators = locators
        super().__init__(str(path), keys, labels, sizes, class_names, allow_empty=allow_empty)

    def locator(self, index: int) -> Locator:
        """Return the member's place in the archive."""
        return tuple(self._locators[index].tolist())

    def reader(self) -> Reader:
        """Return a reader of byte ranges of the archive."""
        return RangeReader(str(self._data_path))


class Listing:
    """The image members of an archive, as they come.

    Attributes:
        keys: Member names.
        sizes: Bytes of each image.
        ignored: How many other files there are.
        first_ignored: One of them.
    """

    def __init__(self, locator_length: int) -> None:
        self.keys: list[str] = []
        self.sizes = array("q")
        self.ignored = 0
        self.first_ignored = ""
        self._locators = array("q")
        self._locator_length = locator_length

    def add(self, key: str, locator: tuple[int, ...], size: int) -> None:
        """Add a member if its name promises an image.

        Raises:
            ValueError: If the name is too long to be one.
        """
        key = key.removeprefix("./")
        if len(key) > _LONGEST_NAME:
            raise ValueError(
                f"a member's name has {len(key)} letters, {key[:20]!r} and so on; at most {_LONGEST_NAME} are read"
            )
        if not is_image_name(key) or key.startswith("__MACOSX/"):
            self.ignored += 1
            self.first_ignored = self.first_ignored or key
            return
        self.keys.append(key)
        self._locators.extend(locator)
        self.sizes.append(size)

    def locators(self) -> NDArray[np.int64]:
        """Return what `RangeReader` wants for each image, one per row."""
        return np.frombuffer(self._locators, np.int64).reshape(len(self.keys), self._locator_length)


def list_zip(path: Path) -> Listing:
    """List a zip's images from its directory.

    Raises:
        ValueError: If the directory is unreadable, or a member encrypted or compressed by other than deflate.
    """
    listing = Listing(locator_length=4)
    try:
        with zipfile.ZipFile(path) as archive:
            end = os.path.getsize(path)
            for info in archive.infolist():
                if info.is_dir():
                    continue
                if not 0 <= info.header_offset <= end - info.compress_size or info.file_size >= 2**62:
                    raise zipfile.BadZipFile(f"member {info.filename[:_LONGEST_NAME]!r} lies outside of the file")
                if is_image_name(info.filename) and info.flag_bits & 1:
                    raise ValueError(f"{path}: member {info.filename!r} is encrypted")
                if is_image_name(info.filename) and info.compress_type not in (_STORED, _DEFLATED):
                    raise ValueError(
                        f"{path}: member {info.filename!r} uses compression method {info.compress_type}; "
                        "stored (0) and deflate (8) are read"
                    )
                locator = (info.header_offset, info.compress_size, info.compress_type, info.CRC)
                listing.add(info.filename, locator, info.file_size)
    except (zipfile.BadZipFile, EOFError, struct.error, NotImplementedError, OSError, ValueError) as error:
        raise ValueError(f"{path}: unreadable or truncated zip ({error})") from None
    return listing


def list_tar(path: Path, data_path: Path) -> Listing:
    """List the images of an uncompressed tar, and those of tars inside it, by one pass over the headers.

    A tar inside the tar is a class folder named as the tar, as in ImageNet's `ILSVRC2012_img_train.tar`.

    Args:
        path: The file that the user named, for messages.
        data_path: The same or its unpacked copy.

    Raises:
        ValueError: If the tar is damaged or truncated.
    """
    listing = Listing(locator_length=2)
    with open(data_path, "rb") as file:
        _list_tar_range(listing, path, file.fileno(), 0, os.path.getsize(data_path), "")
    return listing


class _Window:
    """A file object over a byte range of an open file, for tarfile."""

    def __init__(self, fd: int, start: int, size: int) -> None:
        self._fd, self._start, self._size, self._position = fd, start, size, 0

    def read(self, count: int = -1) -> bytes:
        left = self._size - self._position
        count = left if count < 0 else min(count, left)
        data = os.pread(self._fd, count, self._start + self._position) if count > 0 else b""
        self._position += len(data)
        return data

    def seek(self, position: int, whence: int = 0) -> int:
        self._position = position + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position


def _list_tar_range(listing: Listing, path: Path, fd: int, start: int, size: int, prefix: str) -> None:
    place = f"{path}: {prefix.rstrip('/')}.tar inside it is" if prefix else f"{path}:"
    window = _Window(fd, start, size)
    try:
        with tarfile.open(fileobj=window, mode="r:") as archive:  # type: ignore[call-overload]
            while (member := archive.next()) is not None:
                archive.members = []  # tarfile keeps every header it has seen: a gigabyte for ImageNet
                if not member.isreg():
                    continue
                end = member.offset_data + member.size
                if end > size:
                    raise ValueError(f"{place} truncated: {member.name!r} ends at byte {end} of {size}")
                name = prefix + member.name.removeprefix("./")
                if name.endswith(".tar"):
                    _list_tar_range(listing, path, fd, start + member.offset_data, member.size, name[:-4] + "/")
                else:
                    listing.add(name, (start + member.offset_data, member.size), member.size)
            end_of_archive = archive.offset
    except (tarfile.TarError, OverflowError) as error:
        raise ValueError(f"{place} unreadable or truncated tar ({error})") from None
    # A download cut between two members looks complete but for the two zero blocks that end a tar.
    window.seek(end_of_archive)
    if window.read(512) != bytes(512) and window.seek(end_of_archive - 512) >= 0 and window.read(512) != bytes(512):
        raise ValueError(f"{place} truncated tar (its end marker is missing)")


def arrange(path: Path, listing: Listing, data_path: Path) -> ArchiveSource:
    """Order an archive with a folder per class: classes by name, members by name.

    Leading folders that all images share are not classes, as long as another folder lies below them.

    Raises:
        ValueError: If there is no image or no folder, or a name comes twice.
    """
    folders = [key.split("/")[:-1] for key in listing.keys]
    _check_members(path, listing)
    if not all(folders):
        loose = listing.keys[next(i for i, f in enumerate(folders) if not f)]
        raise ValueError(f"{path}: image {loose!r} lies in no class folder; give a table of labels (path,label)")
    depth = 0
    while all(len(f) > depth + 1 and f[depth] == folders[0][depth] for f in folders):
        depth += 1
    names = sorted({f[depth] for f in folders})
    label_of = {name: i for i, name in enumerate(names)}
    labels = [label_of[f[depth]] for f in folders]
    order = sorted(range(len(labels)), key=lambda i: (labels[i], listing.keys[i]))
    return _source(path, listing, order, [labels[i] for i in order], names, data_path)


def arrange_by_table(path: Path, listing: Listing, table: LabelTable, data_path: Path) -> ArchiveSource:
    """Order an archive's members as a table does; a row may leave out folders and the suffix.

    Raises:
        ValueError: If a row names no member.
    """
    _check_members(path, listing)
    index_of: dict[str, int] = {}
    for index, key in enumerate(listing.keys):
        base = key.rsplit("/", 1)[-1]
        for alias in (base.rsplit(".", 1)[0], base):
            index_of.setdefault(alias, index)
    index_of.update((key, index) for index, key in enumerate(listing.keys))
    order = []
    for key, line in zip(table.keys, table.lines):
        if key not in index_of:
            raise ValueError(f"{table.path} line {line}: no member {key!r} in {path}")
        order.append(index_of[key])
    return _source(path, listing, order, table.labels.tolist(), table.class_names, data_path)


def arrange_by_numbers(path: Path, listing: Listing, labels: NDArray[np.int64], class_names: Sequence[str],
                       labels_path: Path, data_path: Path) -> ArchiveSource:  # fmt: skip
    """Order a flat archive by name and give its images the labels of a list of as many.

    Raises:
        ValueError: If the counts differ.
    """
    _check_members(path, listing)
    if len(labels) != len(listing.keys):
        raise ValueError(f"{labels_path}: {len(labels)} labels for the {len(listing.keys)} images of {path}")
    order = sorted(range(len(labels)), key=listing.keys.__getitem__)
    return _source(path, listing, order, labels.tolist(), class_names, data_path, allow_empty=True)


def _check_members(path: Path, listing: Listing) -> None:
    if not listing.keys:
        raise ValueError(f"{path}: no image in this archive")
    if len(set(listing.keys)) < len(listing.keys):
        seen: set[str] = set()
        twice = next(key for key in listing.keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{path}: two members are named {twice!r}")


def _source(path: Path, listing: Listing, order: list[int], labels: list[int], class_names: Sequence[str],
            data_path: Path, *, allow_empty: bool = False) -> ArchiveSource:  # fmt: skip
    keys = Keys()
    for index in order:
        keys.append(listing.keys[index])
    places = np.asarray(order, np.int64)
    sizes = np.frombuffer(listing.sizes, np.int64)[places]
    source = ArchiveSource(path, keys, np.asarray(labels, np.int64), listing.locators()[places], sizes, class_names,
                           data_path, allow_empty=allow_empty)  # fmt: skip
    if listing.ignored:
        what = f"{listing.ignored} files that are not images (first: {listing.first_ignored})"
        source.notes.append(f"passed over {what}")
    return source

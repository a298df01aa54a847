"""Folders of images: one sub-folder per class, or flat with a table of labels."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hamgan.data.labels import LabelTable
from hamgan.data.source import Keys, Locator, Reader, Source, is_image_name

_PIECE = 2**20


class FileReader(Reader):
    """Reads files below a root; a locator is the path relative to it."""

    def __init__(self, root: str) -> None:
        self._root = root

    def read(self, locator: Locator) -> bytes:
        """Return the file's bytes."""
        fd = os.open(f"{self._root}/{locator}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            data = os.read(fd, size + 1)
            while len(data) != size and (more := os.read(fd, _PIECE)):  # other than its length says, or interrupted
                data += more
            return data
        finally:
            os.close(fd)


class FolderSource(Source):
    """Files below one root folder; a key is the path relative to it."""

    def __init__(self, root: Path, keys: Keys, labels: Sequence[int], sizes: Sequence[int],
                 class_names: Sequence[str], *, allow_empty: bool = False) -> None:  # fmt: skip
        self._root = root
        super().__init__(str(root), keys, np.asarray(labels, np.int64), np.asarray(sizes, np.int64), class_names,
                         allow_empty=allow_empty)  # fmt: skip

    def locator(self, index: int) -> Locator:
        """Return the path below the root."""
        return self.keys[index]

    def reader(self) -> Reader:
        """Return a reader of files below the root."""
        return FileReader(str(self._root))


def class_folders(root: Path) -> FolderSource:
    """List a folder with one sub-folder per class: classes by sorted name, images by sorted path.

    Raises:
        ValueError: If there is no class folder, or one without an image.
    """
    class_names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != ".")
    if not class_names:
        loose = sum(is_image_name(entry.name) for entry in os.scandir(root))
        hint = f"; its {loose} images need a table of labels (path,label)" if loose else ""
        raise ValueError(f"{root}: no class folder (one sub-folder of images per class) in it{hint}")
    keys, labels, sizes, ignored = Keys(), [], [], []
    for label, name in enumerate(class_names):
        for key, size in _walk(str(root), name):
            if is_image_name(key):
                keys.append(key)
                labels.append(label)
                sizes.append(size)
            else:
                ignored.append(key)
    if not len(keys):
        raise ValueError(f"{root}: no image found in its {len(class_names)} sub-folders")
    source = FolderSource(root, keys, labels, sizes, class_names)
    if ignored:
        source.notes.append(f"passed over {len(ignored)} files that are not images (first: {ignored[0]})")
    return source


def _walk(root: str, folder: str) -> Iterator[tuple[str, int]]:
    """Yield (path below root, bytes) of all files below a folder, sorted; follows links to folders."""
    entries = sorted(os.scandir(os.path.join(root, folder)), key=lambda entry: entry.name)
    for entry in entries:
        path = f"{folder}/{entry.name}"
        if entry.is_dir():
            yield from _walk(root, path)
        elif not entry.name.startswith("."):
            try:
                size = entry.stat().st_size
            except OSError:
                size = 0  # a dangling link: reading it will say so
            yield path, size


def labelled_files(root: Path, table: LabelTable) -> FolderSource:
    """List the files that a table names below a folder, in the table's order.

    Raises:
        ValueError: If a named file does not exist.
    """
    keys, sizes = Keys(), []
    for key, line in zip(table.keys, table.lines):
        try:
            size = os.stat(os.path.join(root, key)).st_size
        except OSError:
            raise ValueError(f"{table.path} line {line}: no file {key!r} in {root}") from None
        keys.append(key)
        sizes.append(size)
    return FolderSource(root, keys, table.labels.tolist(), sizes, table.class_names)


def numbered_files(root: Path, labels: NDArray[np.int64], class_names: Sequence[str],
                   labels_path: Path) -> FolderSource:  # fmt: skip
    """List a flat folder by name and give its images the labels of a list of as many.

    Raises:
        ValueError: If the counts differ.
    """
    keys, sizes = Keys(), []
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.is_file() and is_image_name(entry.name):
            keys.append(entry.name)
            sizes.append(entry.stat().st_size)
    if len(labels) != len(keys):
        raise ValueError(f"{labels_path}: {len(labels)} labels for the {len(keys)} images of {root}")
    return FolderSource(root, keys, labels.tolist(), sizes, class_names, allow_empty=True)

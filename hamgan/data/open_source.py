"""From what the user names to a `Source`: which kind of folder, archive or published file is it?"""

import tarfile
import zipfile
from pathlib import Path

from hamgan.data import archive, folder, imagenet
from hamgan.data.labels import read_class_names, read_label_table
from hamgan.data.published import find_published
from hamgan.data.source import Source
from hamgan.data.unpack import is_compressed, unpacked_copy

EMOJI = "emoji"
_EMOJI_ZIP = Path(__file__).parent / "emoji" / "fluent-emoji-128.zip"
_TABLE_SUFFIXES = (".csv", ".tsv", ".txt")
_FOLDER_TABLE = "labels.csv"


def open_source(spec: str | Path, *, scratch: Path, labels: str | Path | None = None,
                classes: str | Path | None = None, split: str = "train") -> Source:  # fmt: skip
    """Open any source of labelled images.

    Args:
        spec: The word `emoji`, or a folder, an archive, a table of labels or a published data set's file.
        scratch: Prefix of the names of temporary files (a compressed tar is unpacked there once).
        labels: A table of (path, label), or ImageNet's validation ground truth.
        classes: A file with one class name per line.
        split: "train" or "test", for published data sets that hold both.

    Raises:
        ValueError: If it is no source, or a damaged one.
        FileNotFoundError: If there is nothing at `spec`, `labels` or `classes`.
    """
    path = _EMOJI_ZIP if str(spec) == EMOJI else Path(spec).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no source at {path}: give a folder, an archive, a table of labels or {EMOJI!r}")
    names = read_class_names(_existing(classes)) if classes is not None else None
    table = _existing(labels) if labels is not None else None
    published = find_published(path, split, scratch) if table is None else None
    if published is not None:
        return published
    return _open_folder(path, table, names) if path.is_dir() else _open_file(path, table, names, scratch)


def _existing(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    return path


def _open_folder(path: Path, table: Path | None, names: list[str] | None) -> Source:
    if table is None and (path / _FOLDER_TABLE).is_file():
        table = path / _FOLDER_TABLE
    if table is None:
        return folder.class_folders(path)
    numbered = imagenet.read_validation_labels(table, names)
    if numbered is not None:
        return folder.numbered_files(path, *numbered, table)
    return folder.labelled_files(path, read_label_table(table, names))


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except OverflowError:  # a header that claims more bytes than there are numbers; listing it says where
        return True


def _open_file(path: Path, table: Path | None, names: list[str] | None, scratch: Path) -> Source:
    if path.suffix.lower() in _TABLE_SUFFIXES:
        return folder.labelled_files(path.parent, read_label_table(path, names))
    if table is None and path.name == imagenet.VALIDATION_TAR:
        table = imagenet.find_validation_labels(path)
        if table is None:
            raise ValueError(f"{path}: give its ground truth file (or the development kit's archive) as labels")
    data_path = unpacked_copy(path, scratch) if is_compressed(path) else path
    with open(data_path, "rb") as file:
        start = file.read(512)
    if start[:2] == b"PK" or zipfile.is_zipfile(data_path):
        listing = archive.list_zip(path)
    elif _is_tar(data_path) or path.name.endswith((".tar", ".tar.gz", ".tgz")):
        listing = archive.list_tar(path, data_path)
    else:
        raise ValueError(f"{path}: neither a zip nor a tar archive, a table of labels nor a published data set's file")
    if table is None:
        return archive.arrange(path, listing, data_path)
    numbered = imagenet.read_validation_labels(table, names)
    if numbered is not None:
        return archive.arrange_by_numbers(path, listing, *numbered, table, data_path)
    return archive.arrange_by_table(path, listing, read_label_table(table, names), data_path)

"""Labels that come in a file of their own: tables of (path, label), and ImageNet's validation ground truth."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_HEADER_WORDS = (
    *("path", "paths", "file", "files", "filename", "filenames", "file_name"),
    *("image", "images", "image_id", "imageid", "name", "key"),
)
_LONGEST_ROW = 4000  # letters; names and paths, not a file of another kind


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """Rows of a label file, in the file's order.

    Attributes:
        path: The file.
        keys: Image names as written, "/" between folders.
        labels: Class indices, int64 (N,).
        class_names: Names in the order of the class index.
        lines: Line number of each row, from 1.
    """

    path: Path
    keys: list[str]
    labels: NDArray[np.int64]
    class_names: list[str]
    lines: list[int]


def read_class_names(path: Path) -> list[str]:
    """Read one class name per line.

    Raises:
        ValueError: If a name is empty or comes twice.
    """
    names = [line.strip() for line in _text(path).splitlines()]
    for number, name in enumerate(names, 1):
        if not name:
            raise ValueError(f"{path} line {number}: empty class name")
        if names.index(name) != number - 1:
            raise ValueError(f"{path} line {number}: class {name!r} appears twice")
    return names


def read_label_table(path: Path, class_names: list[str] | None = None) -> LabelTable:
    """Read a table of image paths and labels.

    Columns are separated by commas, or else by white space; a header line is recognised by its first word
    (path, file, filename, image, name, ...). If every label is an integer it is the class index; else the
    labels are names, numbered in sorted order. With `class_names` a label is one of them or an index into them.

    Raises:
        ValueError: If a row is not (path, label), a path comes twice or a label is outside the range.
    """
    keys: list[str] = []
    raw: list[str] = []
    lines: list[int] = []
    seen: dict[str, int] = {}
    text = _text(path).splitlines()
    comma = any("," in line for line in text[:1])
    rows = csv.reader(text) if comma else (line.rsplit(None, 1) for line in text)
    kaggle = False
    for number, row in enumerate(_rows(path, rows), 1):
        if not row:
            continue
        if sum(map(len, row)) > _LONGEST_ROW and not kaggle:
            raise ValueError(f"{path} line {number}: it is longer than {_LONGEST_ROW} letters")
        if len(row) < 2:
            raise ValueError(f"{path} line {number}: {row[0]!r} is not a path and a label")
        if number == 1 and row[0].strip().lower() in _HEADER_WORDS:
            kaggle = row[1].strip() == "PredictionString"  # Kaggle's ImageNet: "wnid x0 y0 x1 y1 ..."
            continue
        key, label = row[0].strip().replace("\\", "/").removeprefix("./"), row[1].strip()
        if not key or not label:
            raise ValueError(f"{path} line {number}: {'path' if not key else 'label'} is empty")
        if key in seen:
            raise ValueError(f"{path} line {number}: {key!r} appears twice (first on line {seen[key]})")
        seen[key] = number
        keys.append(key)
        raw.append(label.split()[0] if kaggle else label)
        lines.append(number)
    if not keys:
        raise ValueError(f"{path}: no row of path and label")
    labels, names = _number(path, raw, lines, class_names)
    return LabelTable(path=path, keys=keys, labels=labels, class_names=names, lines=lines)


def _rows(path: Path, rows: Iterable[list[str]]) -> Iterator[list[str]]:
    try:
        yield from rows
    except csv.Error as error:
        raise ValueError(f"{path}: not a table of path and label ({error})") from None


def _number(path: Path, raw: list[str], lines: list[int],
            class_names: list[str] | None) -> tuple[NDArray[np.int64], list[str]]:  # fmt: skip
    """Turn labels as written into class indices and class names."""
    integers = all(label.removeprefix("-").isdecimal() for label in raw)
    if class_names is not None:
        index_of = {name: i for i, name in enumerate(class_names)}
        labels = []
        for line, label in zip(lines, raw):
            if label in index_of:
                labels.append(index_of[label])
            elif integers and 0 <= int(label) < len(class_names):
                labels.append(int(label))
            else:
                what = f"outside 0..{len(class_names) - 1}" if integers else "not among the class names"
                raise ValueError(f"{path} line {line}: label {label!r} is {what}")
        return np.asarray(labels, np.int64), class_names
    if integers:
        for line, label in zip(lines, raw):
            # Every class needs an image, so more classes than images cannot be meant.
            if not 0 <= int(label) < len(raw):
                raise ValueError(f"{path} line {line}: label {label} is outside 0..{len(raw) - 1} ({len(raw)} images)")
        values = np.asarray([int(label) for label in raw], np.int64)
        return values, [str(i) for i in range(int(values.max()) + 1)]
    names = sorted(set(raw))
    index_of = {name: i for i, name in enumerate(names)}
    return np.asarray([index_of[label] for label in raw], np.int64), names


def read_ground_truth(path: Path) -> NDArray[np.int64] | None:
    """Read ImageNet's ground truth: one class number from 1 to 1000 per line, for the images in sorted order.

    Returns:
        The numbers, int64 (N,), as written; None if the file is not of that form.

    Raises:
        ValueError: If a number is outside 1..1000.
    """
    lines = _text(path).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines or not all(line.strip().removeprefix("-").isdecimal() for line in lines):
        return None
    numbers = np.asarray([int(line) for line in lines], np.int64)
    for line, number in enumerate(numbers, 1):
        if not 1 <= number <= 1000:
            raise ValueError(f"{path} line {line}: label {number} is outside 1..1000")
    return numbers


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error.reason} at byte {error.start})") from None

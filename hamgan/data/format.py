"""The training file's format: its names, its header, and where its pixels lie.

`/images` is contiguous, page-aligned and never filled by HDF5, so that the builder writes and the reader maps its
bytes directly; h5py reads and writes everything else. A header checksum covers what block checksums do not.
docs/data.md has the table.
"""

import json
import zlib
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hamgan.data.sparse import PAGE, SparseBytes

FORMAT = "hamgan-data"
VERSION = 1
BLOCK_IMAGES = 64
LARGEST_SIDE = 4096
_SLACK = 2**24  # bytes that a list may take beyond its file's length, as compressed ones can


@dataclass(kw_only=True)
class Header:
    """Everything in a training file but the pixels.

    Attributes:
        resolution: Side of the images, pixels.
        labels: Class indices, int64 (N,).
        class_names: Names in the order of the class index.
        block_crc32: CRC32 of each run of `block_images` images, uint32.
        resize: How the images came to the resolution.
        background: RGB behind transparent pixels.
        source: Name of the source, without its folder.
        source_fingerprint: sha256 that names the source's images.
        shard: (i, n) if this is the i-th of n parts, counted from 1; (1, 1) if whole.
        missing: (key, reason) of each image that could not be read and was left out.
        block_images: Images per block.
        creator: Program and version that wrote the file.
        parts: For a joined file without pixels of its own: (file name, number of images) of each part.
    """

    resolution: int
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    block_crc32: NDArray[np.uint32]
    resize: str
    background: tuple[int, int, int]
    source: str
    source_fingerprint: str
    shard: tuple[int, int] = (1, 1)
    missing: list[tuple[str, str]] = field(default_factory=list)
    block_images: int = BLOCK_IMAGES
    parts: list[tuple[str, int]] = field(default_factory=list)

    creator: str = field(default_factory=lambda: "hamgan " + metadata.version("hamgan"))

    def attributes(self) -> dict[str, Any]:
        """Return what is stored as attributes of the root group."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "creator": self.creator,
            "resolution": self.resolution,
            "num_images": len(self.labels),
            "num_classes": len(self.class_names),
            "num_missing": len(self.missing),
            "block_images": self.block_images,
            "resize": self.resize,
            "background": list(self.background),
            "source": self.source,
            "source_fingerprint": self.source_fingerprint,
            "shard": list(self.shard),
        }

    def class_counts(self) -> NDArray[np.int64]:
        """Number of images of each class."""
        return np.bincount(self.labels, minlength=len(self.class_names)).astype("<i8")

    def checksum(self) -> int:
        """CRC32 over all of the header."""
        text = json.dumps(
            [self.attributes(), self.class_names, self.missing, self.parts], sort_keys=True, ensure_ascii=True
        )
        crc = zlib.crc32(text.encode())
        crc = zlib.crc32(self.labels.astype("<i8").data, crc)
        return zlib.crc32(self.block_crc32.astype("<u4").data, crc)


def num_blocks(num_images: int) -> int:
    """Number of blocks that hold so many images."""
    return -(-num_images // BLOCK_IMAGES)


def lay_out(num_images: int, resolution: int, header: Header | None) -> tuple[SparseBytes, int, int]:
    """Write a training file, whose pixels are a hole yet to be filled, into memory.

    Args:
        num_images: Number of images, N.
        resolution: Side of the images, pixels.
        header: The rest of the content; None leaves it out, for learning where the pixels will lie.

    Returns:
        The file and the byte offsets of the first pixel and of the end of the pixels. The first is the same for any N
        and any header; both are 0 if the pixels are in parts.
    """
    memory = SparseBytes()
    # v110 metadata carries checksums of its own, so a flipped byte there makes HDF5 refuse the file.
    with h5py.File(memory, "w", libver=("v110", "v110"), alignment_threshold=1, alignment_interval=PAGE) as file:
        shape = (num_images, resolution, resolution, 3)
        start = end = 0
        if header is not None and header.parts:
            _create_virtual(file, shape, header.parts)
        else:
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            properties.set_obj_track_times(False)  # equal content, equal bytes
            space = h5py.h5s.create_simple(shape)
            start = h5py.h5d.create(file.id, b"images", h5py.h5t.STD_U8LE, space, properties).get_offset()
            end = start + num_images * resolution * resolution * 3
        if header is not None:
            _write_header(file, header)
    return memory, start, end


def _create_virtual(file: h5py.File, shape: tuple[int, ...], parts: list[tuple[str, int]]) -> None:
    layout = h5py.VirtualLayout(shape=shape, dtype=np.uint8)
    start = 0
    for name, count in parts:
        layout[start : start + count] = h5py.VirtualSource(name, "images", shape=(count, *shape[1:]))
        start += count
    file.create_virtual_dataset("images", layout)


def _write_header(file: h5py.File, header: Header) -> None:
    file["labels"] = header.labels.astype("<i8")
    file["class_names"] = _strings(list(header.class_names))
    file["class_counts"] = header.class_counts()
    file["block_crc32"] = header.block_crc32.astype("<u4")
    if header.missing:
        file["missing_keys"] = _strings([key for key, _ in header.missing])
        file["missing_reasons"] = _strings([reason for _, reason in header.missing])
    if header.parts:
        file["part_names"] = _strings([name for name, _ in header.parts])
        file["part_counts"] = np.asarray([count for _, count in header.parts], "<i8")
    for name, value in header.attributes().items():
        file.attrs[name] = _strings([value])[0] if isinstance(value, str) else value
    file.attrs["header_crc32"] = header.checksum()


def _strings(values: list[str]) -> NDArray[np.bytes_]:
    """Fixed-length UTF-8: variable-length strings lie in a heap without checksum; a flipped byte there hangs HDF5."""
    encoded = [value.encode("utf-8", "surrogateescape") for value in values]
    length = max(1, *(len(value) for value in encoded))
    return np.asarray(encoded, h5py.string_dtype("utf-8", length))


def read_header(file: h5py.File, path: Path) -> Header:
    """Read the header of an open training file and check it.

    Raises:
        ValueError: If the file is of a newer version, lacks a part or its header is damaged.
    """
    try:
        kind, version = _text(file, "format"), int(file.attrs["version"])
    except (KeyError, RuntimeError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a hamgan training file, or a damaged one ({_first_line(error)})") from None
    if kind != FORMAT:
        raise ValueError(f"{path}: not a hamgan training file (its format is {kind!r})")
    if version > VERSION:
        raise ValueError(
            f"{path}: format version {version} is newer than {VERSION}, the newest that this hamgan reads; update it"
        )
    try:
        header = Header(
            resolution=int(file.attrs["resolution"]),
            labels=read_list(file, "labels", "iu").astype(np.int64),
            class_names=tuple(_read_strings(file, "class_names")),
            block_crc32=read_list(file, "block_crc32", "u").astype(np.uint32),
            resize=_text(file, "resize"),
            background=_integers(file, "background", 3),
            source=_text(file, "source"),
            source_fingerprint=_text(file, "source_fingerprint"),
            shard=_integers(file, "shard", 2),
            block_images=int(file.attrs["block_images"]),
            creator=_text(file, "creator"),
        )
        if "missing_keys" in file:
            header.missing = list(zip(_read_strings(file, "missing_keys"), _read_strings(file, "missing_reasons")))
        if "part_names" in file:
            header.parts = list(zip(_read_strings(file, "part_names"), read_list(file, "part_counts", "iu").tolist()))
        expected = int(file.attrs["header_crc32"])
        counts = read_list(file, "class_counts", "iu")
        _check_header(header)
    except (KeyError, OSError, RuntimeError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ValueError(f"{path}: damaged header ({_first_line(error)})") from None
    if header.checksum() != expected or not np.array_equal(counts, header.class_counts()):
        raise ValueError(f"{path}: damaged header (its CRC32 is not {expected:08x})")
    return header


def _text(file: h5py.File, name: str) -> str:
    value = file.attrs[name]
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _integers(file: h5py.File, name: str, count: int) -> Any:
    values = tuple(int(v) for v in file.attrs[name])
    if len(values) != count:
        raise TypeError(f"{name} has {len(values)} values")
    return values


def _read_strings(file: h5py.File, name: str) -> list[str]:
    return [bytes(value).decode("utf-8", "surrogateescape") for value in read_list(file, name, "S")]


def read_list(file: h5py.File, name: str, kinds: str) -> NDArray[Any]:
    """Read an array of one dimension that need not be what it should.

    Args:
        file: An open file.
        name: Of the array.
        kinds: The numpy kinds that are allowed, such as "iu".

    Raises:
        ValueError: If it is something else, or claims far more than the file can hold.
        KeyError: If there is none.
    """
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 or dataset.dtype.kind not in kinds:
        what = f"{dataset.dtype} {dataset.shape}" if isinstance(dataset, h5py.Dataset) else "no array"
        raise ValueError(f"{name} is {what}")
    if dataset.nbytes > _SLACK + file.id.get_filesize():
        raise ValueError(f"{name} claims {dataset.nbytes} bytes, the file has {file.id.get_filesize()}")
    return dataset[...]


def _check_header(header: Header) -> None:
    """Check what the reader relies on, since a stranger can make a checksum right.

    Raises:
        ValueError: If the header contradicts itself.
    """
    count, classes = len(header.labels), len(header.class_names)
    if not 1 <= header.resolution <= LARGEST_SIDE:
        raise ValueError(f"resolution {header.resolution} is outside 1..{LARGEST_SIDE}")
    if not count or header.labels.min() < 0 or header.labels.max() >= classes:
        raise ValueError(f"its {count} labels are not all within its {classes} classes")
    if header.block_images < 1 or len(header.block_crc32) != -(-count // header.block_images):
        raise ValueError(f"{len(header.block_crc32)} checksums for {count} images in blocks of {header.block_images}")
    if header.parts and (min(n for _, n in header.parts) < 1 or sum(n for _, n in header.parts) != count):
        raise ValueError(f"its parts do not make up {count} images")


def open_hdf5(path: Path) -> h5py.File:
    """Open a file for reading, without the locks that some network file systems lack.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no HDF5 file, or a damaged one.
    """
    if not path.exists():
        raise FileNotFoundError(f"no training file at {path}")
    if not path.is_file():
        raise ValueError(f"{path}: is a folder, not a training file")
    for locking in (False, None):
        try:
            return h5py.File(path, "r", locking=locking)
        except OSError as error:
            reason = _first_line(error)
            if "locking flag" not in reason:  # HDF5 wants the same choice from all who have the file open here
                break
    raise ValueError(f"{path}: not an HDF5 file, or a damaged or truncated one ({reason})")


def _first_line(error: BaseException) -> str:
    return str(error).split("\n")[0]

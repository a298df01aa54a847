"""CIFAR-10, CIFAR-100, SVHN and FashionMNIST in the files that torchvision downloads."""

import lzma
import math
import pickle
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hamgan.data import matfile
from hamgan.data.source import Keys, Locator, Payload, Reader, Source
from hamgan.data.unpack import open_plain, unpacked_copy

_CIFAR10_FOLDER, _CIFAR100_FOLDER = "cifar-10-batches-py", "cifar-100-python"
_CIFAR_ARCHIVES = {"cifar-10-python.tar.gz": _CIFAR10_FOLDER, "cifar-100-python.tar.gz": _CIFAR100_FOLDER}
_CIFAR10_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_CIFAR100_BATCHES = {"train": ("train",), "test": ("test",)}
_FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_PIECE = 2**20
_LARGEST_IDX = 2**28  # bytes, five times as many as there are: a small compressed file can hold gigabytes
_FASHION_PREFIX = {"train": "train", "test": "t10k"}


class ArrayReader(Reader):
    """For images that are in memory; a locator is the pixels' bytes."""

    def __init__(self, shape: tuple[int, ...], *, planes: bool) -> None:
        self._shape, self._planes = shape, planes

    def read(self, locator: Locator) -> Payload:
        """Return the pixels, (H, W) or (H, W, 3)."""
        pixels = np.frombuffer(locator, np.uint8).reshape(self._shape)
        return pixels.transpose(1, 2, 0) if self._planes else pixels


class ArraySource(Source):
    """Images in one uint8 array, (N, 3, H, W) or (N, H, W)."""

    def __init__(self, path: Path, keys: Keys, pixels: NDArray[np.uint8], labels: NDArray[np.int64],
                 class_names: Sequence[str]) -> None:  # fmt: skip
        self._pixels = pixels
        sizes = np.full(len(pixels), pixels[:1].nbytes, np.int64)
        super().__init__(str(path), keys, labels, sizes, class_names, allow_empty=True)

    def locator(self, index: int) -> Locator:
        """Return the image's bytes."""
        return self._pixels[index].tobytes()

    def reader(self) -> Reader:
        """Return a reader of pixels in memory."""
        return ArrayReader(self._pixels.shape[1:], planes=self._pixels.ndim == 4)


class SvhnReader(Reader):
    """Reads SVHN images from a plain copy of the file's array; a locator is the image's number."""

    def __init__(self, path: str) -> None:
        self._path = path

    def read(self, locator: Locator) -> Payload:
        """Return the pixels, (32, 32, 3)."""
        # MATLAB's (H, W, 3, N) has the first index fastest: image by image, each (3, W, H) in our order.
        pixels = np.fromfile(self._path, np.uint8, 3072, offset=locator * 3072)
        if len(pixels) < 3072:
            raise OSError(f"{self._path} is too short")
        return pixels.reshape(3, 32, 32).transpose(2, 1, 0)


class SvhnSource(Source):
    """SVHN's images in a plain copy of its array."""

    def __init__(self, path: Path, copy: Path, keys: Keys, labels: NDArray[np.int64]) -> None:
        self._copy = copy
        sizes = np.full(len(keys), 3072, np.int64)
        super().__init__(str(path), keys, labels, sizes, [str(i) for i in range(10)], allow_empty=True)

    def locator(self, index: int) -> Locator:
        """Return the image's number."""
        return index

    def reader(self) -> Reader:
        """Return a reader of the copy."""
        return SvhnReader(str(self._copy))


def find_published(path: Path, split: str, scratch: Path) -> Source | None:
    """Open a published data set if `path` is its file, its folder or the folder where torchvision put it.

    Raises:
        ValueError: If its files are damaged or incomplete, or the folder holds several.
    """
    if path.is_file():
        if path.name in _CIFAR_ARCHIVES:
            return _cifar_archive(path, _CIFAR_ARCHIVES[path.name], split)
        if path.suffix == ".mat":
            return _svhn(path, scratch)
        for name, prefix in _FASHION_PREFIX.items():
            if path.name.removesuffix(".gz") == f"{prefix}-images-idx3-ubyte":
                return _fashion(path.parent, name)
        return None
    found = [(kind, place) for kind, place in _candidates(path, split) if place.exists()]
    kinds = {kind for kind, _ in found}
    if len(kinds) > 1:
        raise ValueError(f"{path}: holds several data sets ({', '.join(sorted(kinds))}); name one of their files")
    if not found:
        return None
    kind, place = found[0]
    if kind == "SVHN":
        return _svhn(place, scratch)
    if kind == "FashionMNIST":
        return _fashion(place.parent, split)
    if place.is_file() and place.name in _CIFAR_ARCHIVES:
        return _cifar_archive(place, _CIFAR_ARCHIVES[place.name], split)
    return _cifar_folder(place.parent, split)


def _candidates(path: Path, split: str) -> list[tuple[str, Path]]:
    """List (data set, a file that tells it) by preference: unpacked before packed."""
    images = _FASHION_PREFIX[split] + "-images-idx3-ubyte"
    places = [("CIFAR-10", path / _CIFAR10_FOLDER / "batches.meta"), ("CIFAR-10", path / "batches.meta")]
    places += [("CIFAR-100", path / _CIFAR100_FOLDER / "meta")]
    if (path / "train").is_file() and (path / "test").is_file():
        places += [("CIFAR-100", path / "meta")]
    places += [("SVHN", path / f"{split}_32x32.mat")]
    for folder in (path, path / "raw", path / "FashionMNIST" / "raw"):
        places += [("FashionMNIST", folder / images), ("FashionMNIST", folder / (images + ".gz"))]
    archives = {"cifar-10-python.tar.gz": "CIFAR-10", "cifar-100-python.tar.gz": "CIFAR-100"}
    return places + [(kind, path / name) for name, kind in archives.items()]


class _DataOnly(pickle.Unpickler):
    """Unpickles numbers, text, containers and numpy arrays; anything that could run code is an error."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickled array needs, whichever numpy and pickle protocol wrote it."""
        allowed = {
            "multiarray._reconstruct": np.empty(0).__reduce__()[0],
            "numeric._frombuffer": _array_from_buffer,
            "_codecs.encode": _latin1_bytes,
            "numpy.ndarray": np.ndarray,
            "numpy.dtype": np.dtype,
        }
        for prefix in ("numpy.core.", "numpy._core."):
            module = module.removeprefix(prefix)
        if f"{module}.{name}" in allowed:
            return allowed[f"{module}.{name}"]
        raise pickle.UnpicklingError(f"it wants to call {module}.{name}")


def _array_from_buffer(buffer: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> NDArray[Any]:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _latin1_bytes(text: str, _: str) -> bytes:
    return text.encode("latin1")  # how Python 3 writes bytes for Python 2


def _unpickle(file: IO[bytes], place: str) -> dict[str, Any]:
    try:
        content = _DataOnly(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{place}: not a CIFAR file, or a damaged one ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{place}: not a CIFAR file")
    return content


def _cifar_folder(folder: Path, split: str) -> Source:
    ten = (folder / "batches.meta").exists()
    batches = (_CIFAR10_BATCHES if ten else _CIFAR100_BATCHES)[split]
    contents = {}
    for name in (*batches, "batches.meta" if ten else "meta"):
        with open(folder / name, "rb") as file:
            contents[name] = _unpickle(file, str(folder / name))
    return _cifar(folder, contents, batches, ten=ten)


def _cifar_archive(path: Path, folder: str, split: str) -> Source:
    ten = folder == _CIFAR10_FOLDER
    batches = (_CIFAR10_BATCHES if ten else _CIFAR100_BATCHES)[split]
    contents = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for name in (*batches, "batches.meta" if ten else "meta"):
                file = archive.extractfile(f"{folder}/{name}")
                assert file is not None
                contents[name] = _unpickle(file, f"{path}: {name}")
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]}") from None
    except (tarfile.TarError, EOFError, OSError, OverflowError, zlib.error, lzma.LZMAError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: unreadable or truncated archive ({reason})") from None
    return _cifar(path, contents, batches, ten=ten)


def _is_label(value: Any) -> bool:
    return isinstance(value, int | np.integer) and abs(int(value)) < 2**31


def _cifar(path: Path, contents: dict[str, dict[str, Any]], batches: Sequence[str], *, ten: bool) -> Source:
    label_key, names_key = ("labels", "label_names") if ten else ("fine_labels", "fine_label_names")
    keys, pixels, labels = Keys(), [], []
    for batch in batches:
        data, given = contents[batch].get("data"), contents[batch].get(label_key)
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
            raise ValueError(f"{path}: {batch} has no data of uint8 (N, 3072)")
        if not isinstance(given, list) or len(given) != len(data) or not all(_is_label(v) for v in given):
            raise ValueError(f"{path}: {batch} has no {label_key} for its {len(data)} images")
        for i in range(len(data)):
            keys.append(f"{batch}/{i:05d}")
        pixels.append(data.reshape(-1, 3, 32, 32))
        labels += given
    names = contents["batches.meta" if ten else "meta"].get(names_key)
    if not isinstance(names, list):
        raise ValueError(f"{path}: its meta file has no {names_key}")
    return ArraySource(path, keys, np.concatenate(pixels), np.asarray(labels, np.int64), [str(n) for n in names])


def _svhn(path: Path, scratch: Path) -> Source:
    labels: list[NDArray[Any]] = []
    shapes: list[tuple[int, ...]] = []

    def write_pixels(target: IO[bytes]) -> None:
        for variable in matfile.variables(path):
            if variable.name == "X":
                variable.copy_bytes(target)

    copy = unpacked_copy(path, scratch, write_pixels)
    for variable in matfile.variables(path):
        if variable.name == "X":
            shapes.append(variable.shape)
        elif variable.name == "y":
            labels.append(variable.value().reshape(-1).astype(np.int64))
    if len(labels) != 1 or len(shapes) != 1 or shapes[0] != (32, 32, 3, len(labels[0])):
        raise ValueError(f"{path}: not an SVHN file (X of 32x32x3xN and y of N)")
    if copy.stat().st_size != 3072 * len(labels[0]):
        raise ValueError(f"{path}: X is not uint8")
    if labels[0].min() < 1 or labels[0].max() > 10:
        raise ValueError(f"{path}: label {labels[0].max()} is outside 1..10")
    keys = Keys()
    for i in range(len(labels[0])):
        keys.append(f"{path.stem}/{i:06d}")
    return SvhnSource(path, copy, keys, labels[0] % 10)  # SVHN writes the digit 0 as 10


def _fashion(folder: Path, split: str) -> Source:
    prefix = _FASHION_PREFIX[split]
    images_path, images = _idx(folder, f"{prefix}-images-idx3-ubyte", 3)
    labels_path, labels = _idx(folder, f"{prefix}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise ValueError(f"{labels_path}: {len(labels)} labels for the {len(images)} images of {images_path.name}")
    keys = Keys()
    for i in range(len(images)):
        keys.append(f"{prefix}/{i:05d}")
    return ArraySource(images_path, keys, images, labels.astype(np.int64), _FASHION_CLASSES)


def _idx(folder: Path, name: str, ndim: int) -> tuple[Path, NDArray[np.uint8]]:
    """Read an IDX file of bytes, compressed or not."""
    path = folder / name if (folder / name).exists() else folder / (name + ".gz")
    try:
        with open_plain(path) as file:
            head = file.read(4 + 4 * ndim)
            if len(head) < 4 + 4 * ndim or head[:4] != bytes((0, 0, 8, ndim)):
                raise ValueError(f"{path}: not an IDX file of bytes with {ndim} dimensions")
            shape = struct.unpack(f">{ndim}I", head[4:])
            count = math.prod(shape)
            if count > _LARGEST_IDX:
                raise ValueError(f"{path}: its {'x'.join(map(str, shape))} bytes are more than FashionMNIST's")
            data = bytearray()
            while len(data) <= count and (piece := file.read(min(_PIECE, count + 1 - len(data)))):
                data += piece
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path}: damaged or truncated ({error})") from None
    if len(data) != count:
        found = f"more than {count}" if len(data) > count else len(data)
        raise ValueError(f"{path}: damaged or truncated ({found} bytes for {'x'.join(map(str, shape))})")
    return path, np.frombuffer(data, np.uint8).reshape(shape)

"""Every source gives the same images in the same order as the folder that it was made from."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from matwriter import mat_file
from tiny_images import encode, noise, write_class_folders

from hamgan.data.open_source import open_source
from hamgan.data.source import Source


def opened(spec: Path, **options: object) -> Source:
    return open_source(spec, scratch=spec.parent / "scratch.h5", **options)  # type: ignore[arg-type]


def content(source: Source) -> list[tuple[str, bytes, int]]:
    return [(key, bytes(payload), label) for key, payload, label in source]


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "train"
    write_class_folders(root, {"n02": 3, "n01": 4, "n10": 2})
    (root / "n01" / "deeper").mkdir()
    (root / "n01" / "deeper" / "x.PNG").write_bytes(encode(noise(77, 16, 16)))
    (root / "n01" / "notes.txt").write_text("not an image")
    (root / "n01" / ".hidden.png").write_text("no")
    return root


def members(tree: Path) -> list[tuple[str, bytes]]:
    """All files in an order that is not sorted."""
    files = sorted((p for p in tree.rglob("*") if p.is_file()), key=lambda p: p.name[::-1])
    return [(p.relative_to(tree).as_posix(), p.read_bytes()) for p in files]


def test_class_folders_are_sorted_by_class_and_path(tree: Path) -> None:
    source = opened(tree)
    assert source.class_names == ("n01", "n02", "n10")
    assert list(source.keys) == [
        "n01/000.png", "n01/001.png", "n01/002.png", "n01/003.png", "n01/deeper/x.PNG",
        "n02/000.png", "n02/001.png", "n02/002.png", "n10/000.png", "n10/001.png",
    ]  # fmt: skip
    assert source.labels.tolist() == [0] * 5 + [1] * 3 + [2] * 2
    assert source.notes == ["passed over 1 files that are not images (first: n01/notes.txt)"]
    assert content(source)[4][1] == (tree / "n01/deeper/x.PNG").read_bytes()


@pytest.mark.parametrize("prefix", ["", "train/", "./", "a/b/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip(tree: Path, prefix: str, method: int) -> None:
    path = tree.parent / "train.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members(tree):
            archive.writestr(prefix + name, data)
    source, folder = opened(path), opened(tree)
    assert source.class_names == folder.class_names
    shown = prefix.removeprefix("./")
    assert content(source) == [(shown + key, data, label) for key, data, label in content(folder)]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tar_plain_and_compressed(tree: Path, mode: str, tar_format: int) -> None:
    long_name = "n02/" + "y" * 150 + ".png"
    (tree / long_name).write_bytes(encode(noise(5, 16, 16)))
    path = tree.parent / "train.tar"
    with tarfile.open(path, mode, format=tar_format) as archive:  # type: ignore[call-overload]
        archive.add(tree, ".")
    assert content(opened(path)) == content(opened(tree))


def test_tar_of_tars_is_read_without_unpacking(tree: Path) -> None:
    """As ILSVRC2012_img_train.tar: one tar per class, images without folders inside."""
    path = tree.parent / "ILSVRC2012_img_train.tar"
    with tarfile.open(path, "w") as outer:
        for folder in ("n10", "n02", "n01"):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for name, data in members(tree):
                    if name.startswith(folder):
                        add(inner, name.removeprefix(folder + "/"), data)
            add(outer, folder + ".tar", buffer.getvalue())
    before = set(tree.parent.iterdir())
    assert content(opened(path)) == content(opened(tree))
    assert set(tree.parent.iterdir()) == before


@pytest.mark.parametrize(
    "table",
    [
        "path,label\nb.png,dog\na.png,ant\nsub/c.png,dog\n",
        "b.png,dog\na.png,ant\n\nsub/c.png,dog",
        "b.png dog\na.png ant\nsub/c.png dog",
    ],
)
def test_flat_folder_with_a_table(tmp_path: Path, table: str) -> None:
    (tmp_path / "flat" / "sub").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.png", "sub/c.png")):
        (tmp_path / "flat" / name).write_bytes(encode(noise(i, 8, 8)))
    (tmp_path / "flat" / "labels.csv").write_text(table)
    expected = ["b.png", "a.png", "sub/c.png"], [1, 0, 1], ("ant", "dog")
    for source in (
        opened(tmp_path / "flat"),
        opened(tmp_path / "flat" / "labels.csv"),
        opened(tmp_path / "flat", labels=tmp_path / "flat" / "labels.csv"),
    ):
        assert (list(source.keys), source.labels.tolist(), source.class_names) == expected
    assert content(source)[1][1] == (tmp_path / "flat" / "a.png").read_bytes()


def test_integer_labels_are_class_indices_and_classes_may_be_named(tmp_path: Path) -> None:
    for i, name in enumerate(("a.png", "b.png", "c.png")):
        (tmp_path / name).write_bytes(encode(noise(i, 8, 8)))
    (tmp_path / "t.csv").write_text("a.png,2\nb.png,0\nc.png,1\n")
    assert opened(tmp_path / "t.csv").class_names == ("0", "1", "2")
    (tmp_path / "classes.txt").write_text("zebra\nant\nbee\n")
    source = opened(tmp_path / "t.csv", classes=tmp_path / "classes.txt")
    assert source.class_names == ("zebra", "ant", "bee")
    assert source.labels.tolist() == [2, 0, 1]


def test_flat_archive_with_a_table(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "flat.tar", "w") as archive:
        for i, name in enumerate(("x/a.png", "x/b.png")):
            add(archive, name, encode(noise(i, 8, 8)))
    (tmp_path / "t.csv").write_text("path,label\nx/b.png,one\na,two\n")
    source = opened(tmp_path / "flat.tar", labels=tmp_path / "t.csv")
    assert list(source.keys) == ["x/b.png", "x/a.png"]
    assert [source.class_names[label] for label in source.labels] == ["one", "two"]


# ImageNet's validation set ------------------------------------------------------------------------------------


@pytest.fixture
def validation(tmp_path: Path) -> Path:
    path = tmp_path / "ILSVRC2012_img_val.tar"
    with tarfile.open(path, "w") as archive:
        for i in (3, 1, 2):
            add(archive, f"ILSVRC2012_val_{i:08d}.JPEG", encode(noise(i, 16, 16), "JPEG"))
    return path


TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def test_validation_tar_with_its_ground_truth(validation: Path) -> None:
    (validation.parent / TRUTH).write_text("490\n361\n1000\n")
    source = opened(validation)
    assert [key[-6] for key in source.keys] == ["1", "2", "3"]
    assert [source.class_names[label] for label in source.labels] == ["490", "361", "1000"]
    assert len(source.class_names) == 1000


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_meta_mat_gives_the_training_folders_order(validation: Path, compressed: bool, packed: bool) -> None:
    wnid = {number: f"n{(number * 7919) % 100003:08d}" for number in range(1, 1003)}
    synsets = [{"ILSVRC2012_ID": np.float64(n), "WNID": wnid[n], "words": f"thing {n}"} for n in wnid]
    meta = mat_file({"synsets": synsets}, compressed=compressed)
    if packed:
        with tarfile.open(validation.parent / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
            add(archive, f"ILSVRC2012_devkit_t12/data/{TRUTH}", b"490\n361\n7\n")
            add(archive, "ILSVRC2012_devkit_t12/data/meta.mat", meta)
    else:
        (validation.parent / TRUTH).write_text("490\n361\n7\n")
        (validation.parent / "meta.mat").write_bytes(meta)
    source = opened(validation)
    assert list(source.class_names) == sorted(wnid[n] for n in range(1, 1001))
    assert [source.class_names[label] for label in source.labels] == [wnid[490], wnid[361], wnid[7]]


@pytest.mark.parametrize(
    "table",
    [
        "ImageId,PredictionString\nILSVRC2012_val_00000002,n01 1 2 3 4 n01 5 6 7 8\nILSVRC2012_val_00000001,n02 0 0 1 1\n",
        "ILSVRC2012_val_00000002.JPEG n01\nILSVRC2012_val_00000001.JPEG n02\n",
    ],
)
def test_validation_tar_with_other_tables(validation: Path, table: str) -> None:
    (validation.parent / "t.csv").write_text(table)
    source = opened(validation, labels=validation.parent / "t.csv")
    assert [key[-6] for key in source.keys] == ["2", "1"]
    assert [source.class_names[label] for label in source.labels] == ["n01", "n02"]


# Published data sets ------------------------------------------------------------------------------------------


def cifar_batch(seed: int, count: int, label_key: str, num_classes: int) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    return {
        "batch_label": "a batch",
        label_key: rng.integers(0, num_classes, count).tolist(),
        "data": rng.integers(0, 256, (count, 3072), np.uint8),
        "filenames": [f"x_{i}.png" for i in range(count)],
    }


def cifar_files(kind: int) -> dict[str, dict[str, object]]:
    if kind == 10:
        files = {f"cifar-10-batches-py/data_batch_{i}": cifar_batch(i, 4, "labels", 10) for i in range(1, 6)}
        files["cifar-10-batches-py/test_batch"] = cifar_batch(6, 3, "labels", 10)
        files["cifar-10-batches-py/batches.meta"] = {"label_names": [f"name {i}" for i in range(10)], "num_vis": 3072}
    else:
        files = {
            f"cifar-100-python/{n}": cifar_batch(i, 5, "fine_labels", 100) for i, n in enumerate(("train", "test"))
        }
        files["cifar-100-python/meta"] = {"fine_label_names": [f"name {i}" for i in range(100)]}
    return files


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("kind", [10, 100])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar(tmp_path: Path, kind: int, packed: bool, split: str, protocol: int) -> None:
    files = cifar_files(kind)
    archive_path = tmp_path / f"cifar-{kind}-python.tar.gz"
    with tarfile.open(archive_path, "w:gz") as archive:
        for name, batch in files.items():
            add(archive, name, pickle.dumps(batch, protocol=protocol))
    if not packed:
        with tarfile.open(archive_path) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11 has it from 3.11.4 on
            archive.extractall(tmp_path)
        archive_path.unlink()
    label_key = "labels" if kind == 10 else "fine_labels"
    training = [b for n, b in files.items() if ("data_batch" in n or n.endswith("/train"))]
    wanted = training if split == "train" else [b for n, b in files.items() if "test" in n]
    source = opened(archive_path if packed else tmp_path, split=split)
    pixels = np.concatenate([b["data"] for b in wanted]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = [label for b in wanted for label in b[label_key]]
    assert source.labels.tolist() == labels and source.class_names[3] == "name 3"
    np.testing.assert_array_equal(np.stack([payload for _, payload, _ in source]), pixels)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("owned",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, batch in cifar_files(10).items():
        (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "data_batch_3").write_bytes(pickle.dumps({"data": Evil()}, protocol=2))
    with pytest.raises(ValueError, match=r"data_batch_3.*wants to call .*mkdir"):
        opened(tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("as_folder", [False, True])
def test_svhn(tmp_path: Path, compressed: bool, as_folder: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 7), np.uint8)
    digits = np.asarray([[1], [10], [9], [5], [10], [2], [3]], np.uint8)
    (tmp_path / "train_32x32.mat").write_bytes(mat_file({"X": images, "y": digits}, compressed=compressed))
    source = opened(tmp_path if as_folder else tmp_path / "train_32x32.mat")
    assert source.labels.tolist() == [1, 0, 9, 5, 0, 2, 3] and source.class_names[0] == "0"
    np.testing.assert_array_equal(np.stack([payload for _, payload, _ in source]), images.transpose(3, 0, 1, 2))


def test_the_matlab_reader_reads_what_scipy_writes(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    images = np.random.default_rng(1).integers(0, 256, (32, 32, 3, 5), np.uint8)
    path = tmp_path / "test_32x32.mat"
    scipy_io.savemat(path, {"X": images, "y": np.asarray([[1], [2], [3], [4], [10]], np.uint8)}, do_compression=True)
    source = opened(path)
    assert source.labels.tolist() == [1, 2, 3, 4, 0]
    np.testing.assert_array_equal(np.stack([payload for _, payload, _ in source]), images.transpose(3, 0, 1, 2))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
def test_fashion_mnist(tmp_path: Path, compressed: bool, split: str) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    kept = {}
    for name, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = rng.integers(0, 256, (6, 28, 28), np.uint8), rng.integers(0, 10, 6).astype(np.uint8)
        kept[name] = images, labels
        files = {
            f"{prefix}-images-idx3-ubyte": struct.pack(">IIII", 0x803, 6, 28, 28) + images.tobytes(),
            f"{prefix}-labels-idx1-ubyte": struct.pack(">II", 0x801, 6) + labels.tobytes(),
        }
        for file_name, data in files.items():
            path = raw / (file_name + ".gz" if compressed else file_name)
            path.write_bytes(gzip.compress(data) if compressed else data)
    source = opened(tmp_path, split=split)
    images, labels = kept[split]
    assert source.labels.tolist() == labels.tolist() and source.class_names[9] == "Ankle boot"
    np.testing.assert_array_equal(np.stack([payload for _, payload, _ in source]), images)


def test_built_pixels_of_array_sources(tmp_path: Path, built) -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 7), np.uint8)
    digits = np.arange(1, 8, dtype=np.uint8)[:, None]
    (tmp_path / "train_32x32.mat").write_bytes(mat_file({"X": images, "y": digits}, compressed=True))
    file = built(tmp_path / "train_32x32.mat", resolution=32, resize="none")
    np.testing.assert_array_equal(file.read(range(7)), images.transpose(3, 0, 1, 2))
    assert not list(tmp_path.glob("*.partial*")), "the unpacked copy is left behind"


# Fingerprints -------------------------------------------------------------------------------------------------


def test_fingerprint_tells_content_and_not_time_or_place(tree: Path, tmp_path: Path) -> None:
    before = opened(tree).fingerprint()
    os.utime(tree / "n01/000.png", (1, 1))
    moved = tree.rename(tmp_path / "elsewhere")
    assert opened(moved).fingerprint() == before
    data = bytearray((moved / "n01/000.png").read_bytes())
    data[-20] ^= 1
    (moved / "n01/000.png").write_bytes(data)
    assert opened(moved).fingerprint() != before

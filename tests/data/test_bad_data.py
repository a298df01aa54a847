"""Bad input: one clear line each, and the old output stays."""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from matwriter import mat_file
from tiny_images import encode, noise, write_class_folders

from hamgan.data.build import build
from hamgan.data.hdf5 import TrainingFile
from hamgan.data.merge import merge

PNG = encode(noise(0, 16, 16))


def write_tar(path: Path, names: list[str], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(PNG)
            archive.addfile(member, io.BytesIO(PNG))


def write_zip(path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, PNG)


def cut(path: Path, part: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])


NAMES = [f"{c}/{i}.png" for c in "ab" for i in range(5)]


def truncated_tar(d: Path) -> Path:
    write_tar(d / "x.tar", NAMES)
    cut(d / "x.tar", 0.4)
    return d / "x.tar"


def tar_cut_between_members(d: Path) -> Path:
    write_tar(d / "x.tar", NAMES)
    size = 512 + -(-len(PNG) // 512) * 512
    (d / "x.tar").write_bytes((d / "x.tar").read_bytes()[: 6 * size])
    return d / "x.tar"


def truncated_inner_tar(d: Path) -> Path:
    write_tar(d / "a.tar", ["1.png", "2.png"])
    cut(d / "a.tar", 0.1)
    with tarfile.open(d / "x.tar", "w") as archive:
        archive.add(d / "a.tar", "a.tar")
    return d / "x.tar"


def truncated_tar_gz(d: Path) -> Path:
    write_tar(d / "x.tar.gz", NAMES, "w:gz")
    cut(d / "x.tar.gz", 0.6)
    return d / "x.tar.gz"


def truncated_zip(d: Path) -> Path:
    write_zip(d / "x.zip", NAMES)
    cut(d / "x.zip", 0.6)
    return d / "x.zip"


def garbage(d: Path) -> Path:
    (d / "x.tar").write_bytes(noise(0, 20, 20).tobytes())
    return d / "x.tar"


def duplicate_tar(d: Path) -> Path:
    write_tar(d / "x.tar", ["a/1.png", "b/1.png", "a/1.png"])
    return d / "x.tar"


def archive_without_folders(d: Path) -> Path:
    write_zip(d / "x.zip", ["1.png", "2.png"])
    return d / "x.zip"


def archive_without_images(d: Path) -> Path:
    with zipfile.ZipFile(d / "x.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    return d / "x.zip"


def table(text: str, classes: str | None = None) -> Callable[[Path], Path]:
    def make(d: Path) -> Path:
        for i in range(3):
            (d / f"{i}.png").write_bytes(PNG)
        (d / "t.csv").write_text(text)
        if classes is not None:
            (d / "classes.txt").write_text(classes)
        return d / "t.csv"

    return make


def empty_class(d: Path) -> Path:
    write_class_folders(d / "s", {"ant": 2, "bee": 0})
    return d / "s"


def empty_folder(d: Path) -> Path:
    (d / "s").mkdir()
    return d / "s"


def loose_images(d: Path) -> Path:
    (d / "s").mkdir()
    (d / "s" / "1.png").write_bytes(PNG)
    return d / "s"


def empty_file(d: Path) -> Path:
    (d / "x.zip").write_bytes(b"")
    return d / "x.zip"


def validation(truth: str) -> Callable[[Path], Path]:
    def make(d: Path) -> Path:
        write_tar(d / "ILSVRC2012_img_val.tar", ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG"])
        if truth:
            (d / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
        return d / "ILSVRC2012_img_val.tar"

    return make


def cifar(change: Callable[[dict], object]) -> Callable[[Path], Path]:
    def make(d: Path) -> Path:
        folder = d / "cifar-100-python"
        folder.mkdir()
        batch = {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 1]}
        change(batch)
        (folder / "train").write_bytes(pickle.dumps(batch))
        (folder / "test").write_bytes(pickle.dumps(batch))
        (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}))
        return d

    return make


def svhn(labels: list[int], part: float = 1.0) -> Callable[[Path], Path]:
    def make(d: Path) -> Path:
        images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 2), np.uint8)
        path = d / "train_32x32.mat"
        path.write_bytes(mat_file({"X": images, "y": np.asarray([labels], np.uint8).T}, compressed=True))
        cut(path, part)
        return path

    return make


def fashion(part: float) -> Callable[[Path], Path]:
    def make(d: Path) -> Path:
        data = struct.pack(">IIII", 0x803, 2, 28, 28) + noise(0, 28, 28 * 2)[..., 0].tobytes()
        (d / "train-images-idx3-ubyte").write_bytes(data[: int(len(data) * part)])
        (d / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">II", 0x801, 3) + b"\1\2\3"))
        return d

    return make


CASES = [
    (lambda d: d / "nothing", "no source at .*nothing: give a folder"),
    (empty_folder, "no class folder"),
    (loose_images, "no class folder .*; its 1 images need a table of labels"),
    (empty_class, "class 'bee' has no image"),
    (empty_file, "x.zip: neither a zip nor a tar archive"),
    (garbage, "x.tar: unreadable or truncated tar"),
    (truncated_tar, "x.tar: .*truncated"),
    (tar_cut_between_members, "x.tar: truncated tar .*end marker is missing"),
    (truncated_inner_tar, "x.tar: a.tar inside it is truncated"),
    (truncated_tar_gz, "x.tar.gz: damaged or truncated"),
    (truncated_zip, "x.zip: unreadable or truncated zip"),
    (duplicate_tar, "x.tar: two members are named 'a/1.png'"),
    (archive_without_folders, "image '1.png' lies in no class folder; give a table"),
    (archive_without_images, "x.zip: no image in this archive"),
    (table("0.png,a\n7.png,b\n"), "t.csv line 2: no file '7.png'"),
    (table("path,label\n0.png,a\n1.png,b\n0.png,b\n"), r"t.csv line 4: '0.png' appears twice \(first on line 2\)"),
    (table("0.png,0\n1.png,-1\n"), r"t.csv line 2: label -1 is outside 0\.\.1"),
    (table("0.png,0\n1.png,1000000000000\n"), r"t.csv line 2: label 1000000000000 is outside 0\.\.1"),
    (table("0.png,0\n1.png,2\n2.png,2\n"), "class '1' has no image"),
    (table("0.png,a\n1.png,5\n", "a\nb\n"), "t.csv line 2: label '5' is not among the class names"),
    (table("0.png,0\n1.png,2\n", "a\nb\n"), r"t.csv line 2: label '2' is outside 0\.\.1"),
    (table("0.png,a\n1.png,b\n", "a\nb\na\n"), "classes.txt line 3: class 'a' appears twice"),
    (table("0.png,a\n1.png\n"), "t.csv line 2: '1.png' is not a path and a label"),
    (table("0.png,a\n1.png,\n"), "t.csv line 2: label is empty"),
    (table("path,label\n"), "t.csv: no row"),
    (validation(""), "ILSVRC2012_img_val.tar: give its ground truth file"),
    (validation("1\n2\n3\n"), "3 labels for the 2 images"),
    (validation("1\n1001\n"), r"line 2: label 1001 is outside 1\.\.1000"),
    (cifar(lambda b: b.update(fine_labels=[0, 100])), r"label 100 is outside 0\.\.99"),
    (cifar(lambda b: b.pop("data")), "train has no data of uint8"),
    (cifar(lambda b: b.update(fine_labels=[0])), "train has no fine_labels for its 2 images"),
    (svhn([1, 11]), r"label 11 is outside 1\.\.10"),
    (svhn([1, 2, 3]), "not an SVHN file"),
    (svhn([1, 2], part=0.5), "train_32x32.mat: damaged or truncated"),
    (fashion(0.7), "train-images-idx3-ubyte: damaged or truncated"),
    (fashion(1.0), "3 labels for the 2 images"),
]


@pytest.mark.parametrize(("make", "message"), CASES, ids=[message[:40] for _, message in CASES])
def test_bad_sources(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    folder, out = tmp_path / "in", tmp_path / "out.h5"
    folder.mkdir()
    out.write_bytes(b"the old output")
    source = make(folder)
    classes = folder / "classes.txt"
    with pytest.raises((ValueError, OSError), match=message) as caught:
        build(source, out, resolution=16, workers=1, overwrite=True, classes=classes if classes.exists() else None)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, UnicodeError)
    assert out.read_bytes() == b"the old output"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.h5"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 2}, r"resolution 2 is outside 4\.\.4096"),
        ({"resize": "cubic"}, "resize 'cubic' is not one of lanczos, box, bilinear, tfgan, none"),
        ({"background": (0, 0, 300)}, "background"),
        ({"workers": 0}, "workers 0"),
        ({"shard": "0/2"}, r"shards count from 1/2 to 2/2"),
        ({"shard": "3/2"}, r"shards count from 1/2 to 2/2"),
        ({"shard": "two"}, "shard 'two' is not of the form i/n"),
        ({"shard": "151/151"}, None),
        ({"split": "val"}, "split 'val' is not train or test"),
        ({"labels": "nowhere.csv"}, "no file at nowhere.csv"),
    ],
)
def test_bad_options(class_folders: Path, tmp_path: Path, options: dict, message: str | None) -> None:
    options = {"resolution": 16, "workers": 1, **options}
    if message is None:
        assert build(class_folders, tmp_path / "x.h5", **options).num_images == 1  # the last of 151 parts of 150
        return
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build(class_folders, tmp_path / "x.h5", **options)
    assert list(tmp_path.iterdir()) == [class_folders]


def test_an_output_that_cannot_be_written(class_folders: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist"):
        build(class_folders, tmp_path / "nowhere" / "x.h5", resolution=16)
    with pytest.raises(ValueError, match=r"is a folder"):
        build(class_folders, class_folders, resolution=16)


def test_an_existing_file_is_kept_unless_told_otherwise(class_folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.h5"
    out.write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"exists and holds something else; overwrite=True"):
        build(class_folders, out, resolution=16, workers=1)
    assert out.read_bytes() == b"precious"
    build(class_folders, out, resolution=16, workers=1, overwrite=True)
    before = out.read_bytes()
    (class_folders / "ant" / "000.png").write_bytes(b"broken")
    for change in ({"resolution": 8}, {"resolution": 16, "background": (0, 0, 0)}, {"resolution": 16, "resize": "box"}):
        with pytest.raises(ValueError, match=r"holds something else"):
            build(class_folders, out, workers=1, **change)
    with pytest.raises(ValueError, match=r"cannot be read"):
        build(class_folders, out, resolution=16, workers=1, overwrite=True)
    assert out.read_bytes() == before


# Training files -----------------------------------------------------------------------------------------------


def test_newer_version_of_the_format(training_file: Path) -> None:
    with h5py.File(training_file, "r+") as file:
        file.attrs["version"] = 2
    with pytest.raises(ValueError, match=r"format version 2 is newer than 1, the newest that this hamgan reads"):
        TrainingFile(training_file)


def test_files_that_are_not_training_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no training file at .*absent.h5"):
        TrainingFile(tmp_path / "absent.h5")
    with pytest.raises(ValueError, match=r"is a folder"):
        TrainingFile(tmp_path)
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(ValueError, match=r"text.h5: not an HDF5 file"):
        TrainingFile(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["weights"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"other.h5: not a training file \(it holds weights"):
        TrainingFile(tmp_path / "other.h5")
    with h5py.File(tmp_path / "alien.h5", "w") as file:
        file.attrs["format"] = "something"
    with pytest.raises(ValueError, match=r"not a hamgan training file"):
        TrainingFile(tmp_path / "alien.h5")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((4, 3, 8, 8), np.float32), np.zeros(4, int), "imgs is float32"),
        (np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, int), r"not uint8 \(N, 3, R, R\)"),
        (np.zeros((4, 3, 8, 8), np.uint8), np.zeros(5, int), r"labels has shape \(5,\) beside 4 images"),
        (np.zeros((4, 3, 8, 8), np.uint8), np.asarray([0, -1, 0, 0]), "label -1 is negative"),
    ],
)
def test_bad_foreign_files(tmp_path: Path, images: np.ndarray, labels: np.ndarray, message: str) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["imgs"], file["labels"] = images, labels
    with pytest.raises(ValueError, match=message):
        TrainingFile(tmp_path / "f.h5")


@pytest.mark.parametrize("part", [0.0, 0.05, 0.5, 0.97])
def test_truncated_training_files(training_file: Path, part: float) -> None:
    cut(training_file, part)
    with pytest.raises(ValueError, match=r"truncated") as caught:
        TrainingFile(training_file)
    assert "\n" not in str(caught.value)


@pytest.fixture
def parts(class_folders: Path, tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.h5" for i in (1, 2, 3)]
    for i, path in enumerate(paths, 1):
        build(class_folders, path, resolution=16, shard=f"{i}/3", workers=1)
    return paths


def test_merging_what_does_not_belong_together(parts: list[Path], class_folders: Path, tmp_path: Path) -> None:
    whole, other, out = tmp_path / "whole.h5", tmp_path / "other.h5", tmp_path / "out.h5"
    build(class_folders, whole, resolution=16, workers=1)
    build(class_folders, other, resolution=8, shard="2/3", workers=1)
    half = tmp_path / "half.h5"
    build(class_folders, half, resolution=16, shard="2/2", workers=1)
    for given, message in [
        ([], "no part"),
        (parts[:2], "shards missing: 3/3"),
        ([*parts, parts[0]], "1.h5: is shard 1/3, as is"),
        ([parts[0], other, parts[2]], "other.h5: is of another build .*resolution 8, not 16"),
        ([parts[0], half], "half.h5: is shard 2/2, while .* one of 3"),
        ([whole], "whole.h5: is a whole file, not a shard"),
        ([tmp_path / "absent.h5"], "no training file at"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            merge(given, out)
        assert not out.exists()
    with pytest.raises(ValueError, match=r"1.h5 exists"):
        merge(parts, parts[0])
    with pytest.raises(ValueError, match=r"is one of the parts"):
        merge(parts, parts[0], overwrite=True)
    assert TrainingFile(parts[0]).num_images == 50


def test_a_joined_file_whose_part_is_gone_or_replaced(parts: list[Path], class_folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "joined.h5"
    merge(parts, out)
    build(class_folders, parts[1], resolution=8, shard="2/3", workers=1, overwrite=True)
    with pytest.raises(ValueError, match=r"2.h5: does not hold 50 images of 16x16"):
        TrainingFile(out)
    parts[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"joined.h5: its part .*2.h5 is gone"):
        TrainingFile(out)

"""The published data sets as they are downloaded: labels, splits, and one clear line for what is wrong."""

from pathlib import Path

import numpy as np
import pytest
from labelled_files import write_pair
from PIL import Image
from scipy.io import savemat

from hamgan.segmentation.dataset import read_image, read_mask_image
from hamgan.segmentation.open_data import DataConfig, open_data
from hamgan.segmentation.palettes import ade20k_palette, voc_palette
from hamgan.segmentation.pascal import CONTEXT_CLASSES
from hamgan.segmentation.pictures import save_mask

SHAPE = (6, 8)


def opened(kind: str, path: Path, split: str = "val") -> object:
    return open_data(DataConfig(kind=kind, path=str(path)), split)  # type: ignore[arg-type]


def test_ade20k_drops_its_zero(tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    labels = np.arange(48).reshape(SHAPE) % 151
    labels[-1, -1] = 150
    for folder, name in (("validation", "ADE_val_00000002"), ("validation", "ADE_val_00000001"), ("training", "t")):
        write_pair(root, f"images/{folder}/{name}.jpg", f"annotations/{folder}/{name}.png", labels)
    rows = [f"{k}\t0.1\t1\t1\t1\tthing{k}, synonym" for k in range(1, 151)]
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n" + "\n".join(rows) + "\n")
    data = open_data(DataConfig(kind="ade20k", path=str(tmp_path)), "val")  # the folder that it was unpacked in
    assert [data.name(i) for i in range(2)] == ["ADE_val_00000001", "ADE_val_00000002"]
    assert data.class_names[:2] == ("thing1", "thing2") and data.num_classes == 150
    read = data.read(0).labels
    assert read[0, 0] == 255 and np.array_equal(read.ravel()[1:], labels.ravel()[1:] - 1)
    assert len(open_data(DataConfig(kind="ade20k", path=str(root)), "train")) == 1
    assert data.palette[[0, 149]].tolist() == [[120, 120, 120], [92, 0, 255]] and len(ade20k_palette()) == 150


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Four images: a and b in train and val of VOC, c and d with masks of the outlines' set alone."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    labels = np.arange(48).reshape(SHAPE) % 21
    labels[0, 0] = 255
    for name in "abcd":
        write_pair(root, f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png", labels)
        if name in "cd":
            (root / f"SegmentationClass/{name}.png").unlink()
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in {"train": "a", "val": "b", "trainval": "ab"}.items():
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def test_voc_reads_its_lists_and_colours(voc: Path) -> None:
    for path in (voc, voc.parent, voc.parent.parent):
        data = open_data(DataConfig(kind="voc", path=str(path)), "trainval")
        assert [data.name(i) for i in range(len(data))] == ["a", "b"]
    sample = data.read(1)
    assert sample.labels[0, 0] == 255 and sample.labels[0, 1] == 1 and data.class_names[20] == "tvmonitor"
    expected = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert data.palette[:5].tolist() == expected and voc_palette(21)[20].tolist() == [0, 64, 128]
    save_mask(voc / "SegmentationClass" / "a.png", sample.labels, data.palette)  # with a palette, as VOC's own
    assert np.array_equal(data.read(0).labels, sample.labels)


@pytest.mark.parametrize("listed", [False, True])
def test_voc_trainaug_takes_converted_masks(voc: Path, listed: bool) -> None:
    folder = voc / "SegmentationClassAug"
    folder.mkdir()
    for name in "bcd":
        Image.fromarray(np.full(SHAPE, 3, np.uint8)).save(folder / f"{name}.png")
    if listed:
        (voc / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("d\na\n")
    data = open_data(DataConfig(kind="voc", path=str(voc)), "trainaug")
    names = [data.name(i) for i in range(len(data))]
    assert names == (["d", "a"] if listed else ["a", "c", "d"])  # never what is in val
    assert (data.read(names.index("d")).labels == 3).all()
    assert data.read(names.index("a")).labels[0, 1] == 1  # VOC's own mask where the other set has none


def test_voc_trainaug_takes_the_outlines_set_as_downloaded(voc: Path) -> None:
    folder = voc.parent.parent / "benchmark_RELEASE" / "dataset" / "cls"
    folder.mkdir(parents=True)
    for name in "cd":
        record = np.zeros((1, 1), [("Segmentation", object)])
        record["Segmentation"][0, 0] = np.full(SHAPE, 7, np.uint8)
        savemat(folder / f"{name}.mat", {"GTcls": record})
    data = open_data(DataConfig(kind="voc", path=str(voc)), "trainaug")
    assert [data.name(i) for i in range(len(data))] == ["a", "c", "d"] and (data.read(1).labels == 7).all()


def test_context_ignores_its_background(tmp_path: Path) -> None:
    root = tmp_path / "VOC2010"
    labels = np.arange(48).reshape(SHAPE) + 12
    labels[0, 0] = 0
    write_pair(root, "JPEGImages/x.jpg", "SegmentationClassContext/x.png", labels)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "val.txt").write_text("x\n")
    data = open_data(DataConfig(kind="pascal_context", path=str(tmp_path)), "val")
    read = data.read(0).labels
    assert data.num_classes == 59 and read[0, 0] == 255 and np.array_equal(read.ravel()[1:], labels.ravel()[1:] - 1)

    # The same labels among 459, in another order, as MATLAB files.
    order = np.random.default_rng(0).permutation(459) + 1
    numbers = dict(zip(CONTEXT_CLASSES, order, strict=False))
    others = {f"other {k}": number for k, number in enumerate(order[59:])}
    lines = [f"{number}: {name}" for name, number in (numbers | others).items()]
    (tmp_path / "labels.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "trainval").mkdir()
    raw = np.array([order[59] if k == 255 else numbers[CONTEXT_CLASSES[k]] for k in read.ravel()]).reshape(SHAPE)
    savemat(tmp_path / "trainval" / "x.mat", {"LabelMap": raw.astype(np.uint16)})
    for file in (root / "SegmentationClassContext").iterdir():
        file.unlink()
    (root / "SegmentationClassContext").rmdir()
    again = open_data(DataConfig(kind="pascal_context", path=str(tmp_path)), "val")
    assert np.array_equal(again.read(0).labels, read)


def test_folders_pair_images_and_masks_of_any_size(folders: Path) -> None:
    data = open_data(DataConfig(kind="folders", path=str(folders)), "val")
    assert data.class_names == ("sky", "ground", "thing") and len(data) == 3
    for index in range(3):
        sample = data.read(index)
        mask = np.array(Image.open(folders / "masks" / "val" / f"{index}.png"))
        assert sample.image.shape == (*mask.shape, 3) and np.array_equal(sample.labels, mask)
    fingerprint = data.fingerprint
    (folders / "classes.txt").write_text("sky\nearth\nthing\n")
    assert open_data(DataConfig(kind="folders", path=str(folders)), "val").fingerprint != fingerprint


def test_what_is_wrong_is_said_in_one_line(folders: Path, tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            open_data(DataConfig(kind="folders", path=str(folders)), "val").read(0)
        assert "\n" not in str(caught.value)

    mask = folders / "masks" / "val" / "0.png"
    good = mask.read_bytes()
    Image.fromarray(np.full((40, 52), 7, np.uint8)).save(mask)
    refused(r"0\.png: has the unknown label 7; labels are 0\.\.2, 255")
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(mask)
    refused(r"0\.png: is 40x50, its image .*0\.jpg 40x52 \(height x width\); they must agree")
    Image.fromarray(np.zeros((40, 52, 3), np.uint8)).save(mask)
    refused(r"0\.png: is a picture in RGB; a mask has one channel")
    mask.write_bytes(good[:60])
    refused(r"0\.png: unreadable mask")
    mask.unlink()
    refused(r"0\.png: no mask for .*0\.jpg")
    mask.write_bytes(good)
    (folders / "classes.txt").unlink()
    refused(r"classes\.txt: missing; it must name the classes")
    for kind, message in {
        "ade20k": r"images/validation: no such folder; this is not ADE20K",
        "voc": "no JPEGImages in it",
        "pascal_context": "no JPEGImages in it",
    }.items():
        with pytest.raises(FileNotFoundError, match=message):
            opened(kind, folders)
    with pytest.raises(ValueError, match="split is 'test'; ADE20K has train and val"):
        opened("ade20k", folders, "test")
    with pytest.raises(FileNotFoundError, match=r"data\.path is ''"):
        open_data(DataConfig(kind="ade20k"), "val")


def test_masks_of_other_depths_are_read(tmp_path: Path) -> None:
    labels = np.arange(48).reshape(SHAPE)
    Image.fromarray(labels.astype(np.uint16)).save(tmp_path / "16.png")
    Image.fromarray((labels % 2).astype(bool)).save(tmp_path / "1.png")
    assert np.array_equal(read_mask_image(tmp_path / "16.png"), labels)
    assert np.array_equal(read_mask_image(tmp_path / "1.png"), labels % 2)


def test_images_of_16_bits_keep_their_upper_8_and_others_are_refused(tmp_path: Path) -> None:
    deep = np.array([[0, 255, 256], [32768, 65280, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    read = read_image(tmp_path / "deep.png")
    assert read.shape == (2, 3, 3) and read[..., 1].tolist() == [[0, 0, 1], [128, 255, 255]]
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float\.tif: is a picture in F; images have 8 or 16 bits a channel"):
        read_image(tmp_path / "float.tif")

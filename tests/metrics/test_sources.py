"""Images from folders, arrays, functions and iterables; and one clear line for every bad file."""

import warnings

import numpy as np
import pytest
import torch
from metric_samples import labelled_images
from PIL import Image

from hamgan.metrics import ArrayImages, DrawnImages, FolderImages, ReaderImages, load_npz_images
from hamgan.metrics.evaluate import as_source
from hamgan.metrics.folder import read_rgb
from hamgan.metrics.sources import SequentialImages


@pytest.fixture
def folder(tmp_path):
    images, _ = labelled_images(6, seed=0)
    names = ["b/2.PNG", "b/1.png", "a/x/deep.webp", "a/3.JPeG", "a/0.bmp", "b/9.Tiff"]
    for name, image in zip(names, images):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, lossless=True)
    (tmp_path / "b" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "thumb.png").write_bytes(b"junk")
    return tmp_path


def test_folder_is_walked_with_classes(folder):
    source = FolderImages(folder)
    assert source.num_images == 6
    assert [file.name for file in source.files] == ["0.bmp", "3.JPeG", "deep.webp", "1.png", "2.PNG", "9.Tiff"]
    assert source.class_names == ("a", "b")
    batch = source(np.array([4, 0]))
    expected, _ = labelled_images(6, seed=0)
    assert torch.equal(batch.images, expected[[0, 4]])
    assert batch.labels.tolist() == [1, 0]
    Image.new("RGB", (8, 8)).save(folder / "loose.png")
    assert FolderImages(folder).class_names is None
    assert FolderImages(folder).fingerprint != source.fingerprint


@pytest.mark.parametrize("resolution", [4, 16])
def test_folder_can_cut_and_resize(tmp_path, resolution):
    wide = np.zeros((8, 20, 3), np.uint8)
    wide[:, 6:14] = 200  # the central square
    Image.fromarray(wide).save(tmp_path / "wide.png")
    images = FolderImages(tmp_path, resolution=resolution, resize_filter="box")(np.array([0])).images
    assert images.shape == (1, 3, resolution, resolution)
    assert (images == 200).all()


def save(path, array, mode=None):
    Image.fromarray(array, mode).save(path) if mode else Image.fromarray(array).save(path)


def test_kinds_with_one_rendering_are_converted(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "1-grey.png")
    opaque = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    Image.fromarray(opaque).save(tmp_path / "2-opaque.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "3-palette.png")
    batch = FolderImages(tmp_path)(np.arange(3))
    for image in batch.images:
        assert torch.equal(image, torch.from_numpy(grey).expand(3, 8, 8))


def write_bad(path, kind):
    grey = np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)
    if kind == "16-bit grey":
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    elif kind == "16-bit colour":
        write_png16(path)
    elif kind == "float":
        Image.fromarray(grey.astype(np.float32)).save(path.with_suffix(".tiff"))
    elif kind == "transparent":
        Image.fromarray(np.dstack([grey] * 4)).save(path)
    elif kind == "transparent palette":
        Image.fromarray(grey).convert("P").save(path, transparency=int(grey[0, 0]))
    elif kind == "text":
        path.write_text("this is no picture")
    elif kind == "empty":
        path.touch()
    elif kind == "truncated":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "another size":
        Image.new("RGB", (9, 8)).save(path)


def write_png16(path):
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(range(48))) * 8)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("16-bit grey", "more than 8 bits"),
        ("16-bit colour", "more than 8 bits"),
        ("float", "more than 8 bits"),
        ("transparent", "transparent pixels"),
        ("transparent palette", "transparent pixels"),
        ("text", "unreadable image"),
        ("empty", "unreadable image"),
        ("truncated", "unreadable image"),
        ("another size", r"9x8, but .*0\.png is 8x8"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path, kind, message):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    write_bad(tmp_path / "bad.png", kind)
    with pytest.raises(ValueError, match=message) as error:
        FolderImages(tmp_path)(np.array([0, 1]))
    assert str(tmp_path / "bad") in str(error.value)
    assert "\n" not in str(error.value)


def damaged(path, seed):
    """Overwrite up to four bytes, mostly of the header, and cut a file off now and then."""
    rng, data = np.random.default_rng(seed), bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 5)):
        data[int(rng.integers(0, min(300, len(data)) if rng.integers(0, 2) else len(data)))] = int(rng.integers(0, 256))
    return bytes(data[: int(rng.integers(0, len(data)))] if rng.integers(0, 4) == 0 else data)


@pytest.mark.parametrize("ending", ["png", "tiff", "tif", "bmp", "webp", "jpg", "ppm", "pgm"])
def test_damaged_files_are_read_or_named(tmp_path, ending):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    whole, path = tmp_path / f"whole.{ending}", tmp_path / f"damaged.{ending}"
    image = Image.fromarray(pixels).convert("L" if ending == "pgm" else "RGB")
    image.save(whole, compression="tiff_lzw" if ending == "tiff" else None)
    refused = 0
    for seed in range(150):
        path.write_bytes(damaged(whole, seed))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert read_rgb(path).mode == "RGB"
        except ValueError as error:
            refused += 1
            text = str(error)
            assert text.startswith(f"{path}: ") and "\n" not in text, text
            assert text.count(str(tmp_path)) == 1 and "cannot identify" not in text and "'it'" not in text, text
            assert not text.endswith("()"), text
    assert refused >= 20


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("text.png", b"this is no picture", "of no kind that Pillow knows"),
        ("letters.ppm", b"P6\n4x4 4\n255\n" + bytes(48), "invalid literal for int"),
        ("cut.pgm", b"P5\n4 4\n255\n" + bytes(9), "(?:truncated|not large enough)"),
        ("bomb.ppm", b"P6\n40000 40000\n255\n", "exceeds limit"),
    ],
)
def test_an_unreadable_file_is_named_with_the_reason(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: unreadable image \(.*{reason}.*\)$") as error:
        read_rgb(tmp_path / name)
    assert str(error.value).count(name) == 1


def test_a_file_that_vanished_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.png: unreadable image \(No such file or directory\)$"):
        read_rgb(tmp_path / "gone.png")


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match="no images"):
        FolderImages(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        FolderImages(tmp_path / "absent")
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match="resize_filter = 'sinc'"):
        FolderImages(tmp_path, resize_filter="sinc")
    with pytest.raises(ValueError, match="resolution = 0"):
        FolderImages(tmp_path, resolution=0)


def test_arrays_and_npz_samples(tmp_path):
    images, labels = labelled_images(5, seed=1)
    nhwc = images.permute(0, 2, 3, 1).contiguous()
    assert torch.equal(ArrayImages(nhwc)(np.array([3, 1])).images, images[[3, 1]])
    np.savez(tmp_path / "samples.npz", nhwc.numpy(), labels)
    source = load_npz_images(tmp_path / "samples.npz")
    batch = source(np.arange(5))
    assert torch.equal(batch.images, images)
    assert batch.labels.tolist() == labels.tolist()
    assert source.fingerprint == ArrayImages(images).fingerprint
    np.savez(tmp_path / "float.npz", nhwc.numpy().astype(np.float32))
    with pytest.raises(ValueError, match=r"float\.npz: images: expected dtype uint8"):
        load_npz_images(tmp_path / "float.npz")
    np.savez(tmp_path / "objects.npz", np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="pickled objects"):
        load_npz_images(tmp_path / "objects.npz")


def test_a_reader_of_training_files_is_a_source():
    images, labels = labelled_images(7, seed=2)

    class File:
        num_images = 7
        resolution = 8
        class_names = ("x", "y", "z")
        fingerprint = "f" * 64

        def __init__(self):
            self.labels = labels

        def read(self, indices):
            return images[torch.from_numpy(indices)].permute(0, 2, 3, 1).numpy()

    source = ReaderImages(File())
    batch = source(np.array([6, 2]))
    assert torch.equal(batch.images, images[[6, 2]])
    assert batch.labels.tolist() == labels[[6, 2]].tolist()
    assert source.class_names == ("x", "y", "z")


def test_iterables_are_cut_anew():
    images, labels = labelled_images(10, seed=3)
    batches = [(images[:3], labels[:3]), (images[3:4], torch.from_numpy(labels[3:4])), (images[4:], labels[4:])]
    source = SequentialImages(batches, 9)
    first, second = source(np.arange(5)), source(np.arange(5, 9))
    assert torch.equal(torch.cat([first.images, second.images]), images[:9])
    assert np.concatenate([first.labels, second.labels]).tolist() == labels[:9].tolist()
    with pytest.raises(ValueError, match="only be read once"):
        source(np.arange(5))
    with pytest.raises(ValueError, match="ended after 10 images, expected 12"):
        SequentialImages([images], 12)(np.arange(12))
    with pytest.raises(ValueError, match="mixed sizes"):
        SequentialImages([images, images[:, :, :4]], 12)(np.arange(12))
    with pytest.raises(ValueError, match="some batches have them"):
        SequentialImages([images, (images, labels)], 12)(np.arange(12))


def test_what_evaluate_accepts():
    images, labels = labelled_images(10, seed=3)
    with pytest.raises(ValueError, match="num_images: needed"):
        as_source([images], None)
    with pytest.raises(ValueError, match="num_images = 11, but the source holds 10"):
        as_source(ArrayImages(images), 11)
    part, again = (as_source(ArrayImages(images, labels), 4) for _ in range(2))
    batch = part(np.arange(4))
    where = [int((images == image).all(dim=(1, 2, 3)).nonzero()) for image in batch.images]
    assert where == sorted(set(where)) != [0, 1, 2, 3]  # not the first ones, which may all be of one class
    assert batch.labels.tolist() == labels[where].tolist()
    assert torch.equal(batch.images, again(np.arange(4)).images)
    assert part.fingerprint == again.fingerprint != ArrayImages(images).fingerprint
    with pytest.raises(ValueError, match="were announced as 9"):
        as_source(DrawnImages(lambda numbers: (images[numbers], None), 9), 4)
    whole = as_source(images, None)
    assert torch.equal(whole(np.arange(10)).images, images)
    with pytest.raises(ValueError, match=r"expected dtype uint8, got torch\.float32"):
        as_source(images.float(), None)
    assert isinstance(as_source(lambda numbers: (images[numbers], None), 4), DrawnImages)
    with pytest.raises(ValueError, match="got 3, expected 2"):
        DrawnImages(lambda numbers: (images[:3], None), 5)(np.arange(2))
    with pytest.raises(ValueError, match="expected 2 class indices"):
        DrawnImages(lambda numbers: (images[:2], labels[:3]), 5)(np.arange(2))
    with pytest.raises(ValueError, match="expected dtype uint8"):
        DrawnImages(lambda numbers: (images[:2].float(), None), 5)(np.arange(2))

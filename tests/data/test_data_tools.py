"""Verify, info, show and bench."""

import multiprocessing
import re
import sys
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from tiny_images import flip_byte

from hamgan.data.bench import bench
from hamgan.data.build import build
from hamgan.data.hdf5 import TrainingFile
from hamgan.data.info import info, info_text
from hamgan.data.merge import merge
from hamgan.data.show import contact_sheet
from hamgan.data.verify import verify

IMAGE_BYTES = 16 * 16 * 3


def first_pixel(path: Path) -> int:
    with h5py.File(path) as file:
        return int(file["images"].id.get_offset())


def test_an_undamaged_file_is_verified(training_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(training_file) == 3
    assert "150 images in 3 blocks, all as written" in capsys.readouterr().out


@pytest.mark.parametrize(("image", "block"), [(0, 0), (63, 0), (64, 1), (127, 1), (149, 2)])
def test_a_single_flipped_byte_is_found_and_its_block_named(training_file: Path, image: int, block: int) -> None:
    flip_byte(training_file, first_pixel(training_file) + image * IMAGE_BYTES + 17)
    last = min(64 * block + 63, 149)
    with pytest.raises(ValueError, match=rf"1 of 3 blocks damaged: block {block} \(images {64 * block}\.\.{last}\)$"):
        verify(training_file)


def test_all_damaged_blocks_are_named(training_file: Path) -> None:
    for image in (5, 140):
        flip_byte(training_file, first_pixel(training_file) + image * IMAGE_BYTES)
    with pytest.raises(ValueError, match=r"2 of 3 blocks damaged: block 0 .*, block 2 "):
        verify(training_file)


def _check_unchanged(path: Path, labels: np.ndarray, pixels: np.ndarray) -> None:
    """Exit with 1 if the file is refused in one line, with 0 if it is read as it was."""
    try:
        verify(path)
        with TrainingFile(path) as file:
            np.testing.assert_array_equal(file.labels, labels)
            np.testing.assert_array_equal(file.read(range(150)), pixels)
    except ValueError as error:
        assert "\n" not in str(error)
        sys.exit(1)


def test_a_flipped_byte_anywhere_in_the_header_is_found(training_file: Path) -> None:
    """Of the pages around the pixels; bytes that HDF5 does not use may flip unseen, as long as nothing changes.

    In processes of their own, since HDF5 may hang or crash on what its checksums do not cover.
    """
    data = training_file.read_bytes()
    with TrainingFile(training_file) as file:
        pixels, labels = file.read(range(150)).copy(), file.labels.copy()
    start = first_pixel(training_file)
    end = start + 150 * IMAGE_BYTES
    used = [i for i in (*range(start), *range(end, len(data))) if data[i]]
    found = 0
    for position in np.random.default_rng(0).choice(used, 120, replace=False):
        flip_byte(training_file, int(position))
        arguments = (training_file, labels, pixels)
        process = multiprocessing.get_context("fork").Process(target=_check_unchanged, args=arguments)
        process.start()
        process.join(20)
        if process.exitcode not in (0, 1):
            process.kill()
            pytest.fail(f"byte {position}: exit code {process.exitcode} (None: hangs)")
        found += process.exitcode
        training_file.write_bytes(data)
    assert found > 100


@pytest.mark.parametrize("name", ["labels", "block_crc32", "class_names", "class_counts"])
def test_a_changed_value_beside_the_pixels_is_found(training_file: Path, name: str) -> None:
    with h5py.File(training_file, "r+") as file:
        values = file[name][...]
        values[0] = b"xyz" if name == "class_names" else values[0] ^ 1
        file[name][...] = values
    with pytest.raises(ValueError, match=r"damaged header|blocks damaged"):
        verify(training_file)


def test_verify_and_merge_name_the_damaged_part(class_folders: Path, tmp_path: Path) -> None:
    parts = [tmp_path / "1.h5", tmp_path / "2.h5"]
    for i, part in enumerate(parts, 1):
        build(class_folders, part, resolution=16, shard=f"{i}/2", workers=1)
    merge(parts, tmp_path / "joined.h5")
    flip_byte(parts[1], first_pixel(parts[1]) + 70 * IMAGE_BYTES)
    with pytest.raises(ValueError, match=r"joined.h5: 1 of 3 blocks damaged: block 2"):
        verify(tmp_path / "joined.h5")
    for copy in (False, True):
        with pytest.raises(ValueError, match=r"2.h5: block 1 is damaged"):
            merge(parts, tmp_path / "again.h5", copy=copy)
        assert not list(tmp_path.glob("again*"))


def test_block_checksums_are_plain_crc32(training_file: Path) -> None:
    """Anyone can check them without hamgan."""
    with h5py.File(training_file) as file:
        for number, crc in enumerate(file["block_crc32"][...]):
            assert zlib.crc32(file["images"][64 * number : 64 * number + 64].tobytes()) == crc


def test_info_tells_what_is_inside(training_file: Path) -> None:
    described = info(training_file)
    assert described["classes"] == {"ant": 70, "bee": 30, "cat": 50}
    assert (described["resolution"], described["num_images"], described["resize"]) == (16, 150, "lanczos")
    assert described["source"] == "pictures" and described["missing"] == {} and described["shard"] == "1/1"
    text = info_text(training_file)
    assert re.search(r"resolution +16\n", text) and "  bee: 30" in text


def test_info_of_a_foreign_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["imgs"], file["labels"] = np.zeros((3, 3, 8, 8), np.uint8), np.asarray([0, 1, 1])
    assert info(tmp_path / "f.h5")["format"] == "BigGAN-PyTorch or StudioGAN"
    assert "num_images" in info_text(tmp_path / "f.h5")
    with pytest.raises(ValueError, match=r"no checksums"):
        verify(tmp_path / "f.h5")


def test_contact_sheet_shows_every_class_with_its_label(training_file: Path, tmp_path: Path) -> None:
    sheet = contact_sheet(training_file, tmp_path / "sheet.png", rows=2, columns=3)
    picture = np.asarray(Image.open(sheet))
    scale, gap, caption = 96 // 16, 4, 14
    side = 16 * scale
    assert picture.shape == (2 * (side + caption + gap) + gap, 3 * (side + gap) + gap, 3)
    with TrainingFile(training_file) as file:
        everything = file.read(range(150))
    classes = []
    for row in range(2):
        for column in range(3):
            y, x = gap + row * (side + caption + gap), gap + column * (side + gap)
            tile = picture[y : y + side : scale, x : x + side : scale]
            [index] = np.flatnonzero((everything == tile).all(axis=(1, 2, 3)))
            classes.append(int(file.labels[index]))
            assert (picture[y + side : y + side + caption, x : x + side] < 100).any(), "no caption under the tile"
    assert classes == [0, 0, 1, 1, 2, 2]
    only = contact_sheet(training_file, tmp_path / "only.png", rows=1, columns=2, classes=["bee"])
    assert only.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["dog"]}, "no class 'dog' among its 3, such as 'ant'"),
        ({"rows": 0}, "rows 0 and columns 8 must be"),
    ],
)
def test_contact_sheet_checks_its_arguments(training_file: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contact_sheet(training_file, tmp_path / "sheet.png", **options)


def test_bench_measures_all_that_can_limit(training_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = bench(training_file, batch_size=32, seconds=0.05)
    assert set(results) == {"loader_first", "loader", "memcpy", "disk_sequential", "disk_random"}
    assert all(rate > 0 for rate in results.values())
    assert capsys.readouterr().out.count("images/s") == 5

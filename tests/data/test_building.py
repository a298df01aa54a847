"""Building: the same bytes whatever the number of processes, shards, kills and repairs."""

import errno
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from tiny_images import encode, noise, smooth, write_class_folders

from hamgan.data import build as build_module
from hamgan.data import staging as staging_module
from hamgan.data.build import build
from hamgan.data.hdf5 import TrainingFile
from hamgan.data.merge import merge
from hamgan.data.staging import Staging


def leftovers(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if path.name.startswith(out.name) and path != out)


def test_every_byte_value_survives_in_the_file(tmp_path: Path, built) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.stack([values, values.T, 255 - values], -1)
    (tmp_path / "s" / "a").mkdir(parents=True)
    (tmp_path / "s" / "a" / "x.png").write_bytes(encode(image))
    (tmp_path / "s" / "a" / "y.png").write_bytes(encode(image[:, :, ::-1].copy()))
    for resize in ("none", "lanczos", "box", "bilinear", "tfgan"):
        pixels = built(tmp_path / "s", resize=resize).read([0, 1])
        np.testing.assert_array_equal(pixels, [image, image[:, :, ::-1]])


def test_pixels_labels_and_names_arrive(tmp_path: Path, built) -> None:
    images = write_class_folders(tmp_path / "s", {"bee": 70, "ant": 5})
    file = built(tmp_path / "s", resize="none")
    keys = sorted(images)
    np.testing.assert_array_equal(file.read(range(75)), [images[key] for key in keys])
    assert file.class_names == ("ant", "bee")
    assert file.labels.tolist() == [0] * 5 + [1] * 70


def test_h5py_alone_reads_the_file(training_file: Path) -> None:
    with h5py.File(training_file) as file, TrainingFile(training_file) as ours:
        assert file["images"].shape == (150, 16, 16, 3) and file["images"].dtype == np.uint8
        np.testing.assert_array_equal(file["images"][...], ours.read(range(150)))
        assert file["labels"][...].tolist() == ours.labels.tolist()
        assert [name.decode() for name in file["class_names"][...]] == ["ant", "bee", "cat"]
        assert file["class_counts"][...].tolist() == [70, 30, 50]
        assert file.attrs["format"] == b"hamgan-data" and file.attrs["version"] == 1


def test_any_number_of_processes_gives_the_same_bytes(class_folders: Path, tmp_path: Path) -> None:
    for i in range(60):  # so that resizing, and a JPEG decoder, take part
        data = encode(smooth(i, 40 + i, 53), "JPEG")
        (class_folders / "bee" / f"photo{i}.jpg").write_bytes(data)
    files = []
    for workers in (1, 2, 5):
        files.append(tmp_path / f"{workers}.h5")
        build(class_folders, files[-1], resolution=16, workers=workers)
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()


def test_equal_content_gives_equal_bytes_a_second_later(class_folders: Path, tmp_path: Path) -> None:
    build(class_folders, tmp_path / "1.h5", resolution=16, workers=1)
    time.sleep(1.1)  # HDF5 can keep times in whole seconds
    build(class_folders, tmp_path / "2.h5", resolution=16, workers=1)
    assert (tmp_path / "1.h5").read_bytes() == (tmp_path / "2.h5").read_bytes()


# Kills --------------------------------------------------------------------------------------------------------

COMMAND = """
import sys
from hamgan.data.build import build
build(sys.argv[1], sys.argv[2], resolution=16, workers=2, skip_bad=True)
"""


def kill_until_done(source: Path, out: Path, rng: random.Random, kills: int, seconds: float) -> int:
    """Start builds and SIGKILL them at random moments; return how many were killed before one finished."""
    killed = 0
    while not out.exists():
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(source), str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if killed < kills:
            time.sleep(rng.uniform(0.2, 1.1) * seconds)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL  # else it was done before
        else:
            assert process.wait() == 0
    return killed


def killed_builds(tmp_path: Path, num_images: int, kills: int, seed: int, bad: bool) -> None:
    source = tmp_path / "source"
    write_class_folders(source, {"a": num_images // 3, "b": num_images - num_images // 3}, size=64)
    if bad:
        (source / "a" / "002.png").write_bytes(b"broken")
    undisturbed = tmp_path / "undisturbed.h5"
    started = time.monotonic()
    assert kill_until_done(source, undisturbed, random.Random(0), 0, 0.0) == 0
    seconds = time.monotonic() - started
    rng, total = random.Random(seed), 0
    for attempt in range(4 * kills):
        out = tmp_path / f"killed-{attempt}.h5"
        total += kill_until_done(source, out, rng, kills - total, seconds)
        build(source, out, resolution=16, workers=2, skip_bad=True)  # sweeps up if the kill came after the rename
        assert out.read_bytes() == undisturbed.read_bytes()
        assert [name for name in leftovers(out) if not name.endswith(".bad.txt")] == []
        out.unlink()
        if total >= kills:
            break
    assert total >= kills // 2, "too few builds were still running when the kill came"


def test_killed_and_started_again_it_gives_the_same_bytes(tmp_path: Path) -> None:
    killed_builds(tmp_path, num_images=600, kills=5, seed=0, bad=True)


@pytest.mark.slow
@pytest.mark.parametrize("bad", [False, True])
def test_killed_many_times(tmp_path: Path, bad: bool) -> None:
    killed_builds(tmp_path, num_images=1500, kills=40, seed=1 + bad, bad=bad)


class Killed(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


def crash_at(monkeypatch: pytest.MonkeyPatch, module: object, name: str, call: int) -> None:
    """Have the n-th call of a function raise, before it does anything."""
    original, count = getattr(module, name), iter(range(10**6))

    def crashing(*args: object, **kwargs: object) -> object:
        if next(count) == call:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, crashing)


CRASHES = [
    *[(Staging, "record", call) for call in range(3)],
    *[(staging_module, "write_all", call) for call in (*range(8), 20)],  # closing gaps, then the header's pages
    *[(os, "ftruncate", call) for call in range(4)],
    *[(os, "fsync", call) for call in range(2)],
    *[(os, "replace", 0), (os, "unlink", 0), (os, "unlink", 1)],
    *[(Staging, "compact", 0), (Staging, "finish", 0), (Staging, "remove_leftovers", 0), (staging_module, "seal", 0)],
]


@pytest.mark.parametrize("crash", CRASHES, ids=lambda c: f"{c[1]}-{c[2]}")
def test_a_crash_at_any_step_is_survived(
    class_folders: Path, tmp_path: Path, crash: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    (class_folders / "bee" / "007.png").write_bytes(b"broken")
    (class_folders / "cat" / "020.png").write_bytes(b"broken")
    undisturbed, out = tmp_path / "undisturbed.h5", tmp_path / "out.h5"
    options = {"resolution": 16, "workers": 1, "skip_bad": True}
    build(class_folders, undisturbed, **options)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        crash_at(patch, *crash)
        build(class_folders, out, **options)
    # Only a complete file may have the name.
    assert not out.exists() or out.read_bytes() == undisturbed.read_bytes()
    build(class_folders, out, **options)
    assert out.read_bytes() == undisturbed.read_bytes()
    assert leftovers(out) == ["out.h5.bad.txt"]


def test_a_resumed_build_decodes_only_what_is_missing(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.h5"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        crash_at(patch, Staging, "finish", 0)
        build(class_folders, out, resolution=16, workers=1)
    monkeypatch.setattr(build_module, "build_blocks", None)  # would fail if anything were decoded
    monkeypatch.setattr(build_module, "_in_process", None)
    build(class_folders, out, resolution=16, workers=1)
    assert TrainingFile(out).num_images == 150


def test_a_torn_journal_line_and_a_damaged_block_are_repaired(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, out = tmp_path / "undisturbed.h5", tmp_path / "out.h5"
    build(class_folders, undisturbed, resolution=16, workers=1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        crash_at(patch, Staging, "finish", 0)
        build(class_folders, out, resolution=16, workers=1)
    journal = tmp_path / "out.h5.partial.journal"
    journal.write_bytes(journal.read_bytes()[:-9])
    with open(tmp_path / "out.h5.partial", "r+b") as file:
        file.seek(12288 + 70 * 768)
        file.write(b"junk")
    build(class_folders, out, resolution=16, workers=1)
    assert out.read_bytes() == undisturbed.read_bytes()


def test_leftovers_of_another_build_are_not_used(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.h5"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        crash_at(patch, Staging, "finish", 0)
        build(class_folders, out, resolution=16, resize="box", workers=1)
    (class_folders / "ant" / "000.png").write_bytes(encode(noise(9, 16, 16)))
    build(class_folders, out, resolution=16, workers=1)
    build(class_folders, tmp_path / "fresh.h5", resolution=16, workers=1)
    assert out.read_bytes() == (tmp_path / "fresh.h5").read_bytes()


def test_two_builders_of_one_file_do_not_meet(class_folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    with open(tmp_path / "out.h5.partial.journal", "w") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"another build is writing it"):
            build(class_folders, out, resolution=16, workers=1)
    build(class_folders, out, resolution=16, workers=1)


# Bad images ---------------------------------------------------------------------------------------------------


@pytest.fixture
def with_bad(class_folders: Path) -> Path:
    """150 images of which three, in two blocks, cannot be read."""
    whole = encode(noise(0, 64, 64), "JPEG")
    (class_folders / "ant" / "010.png").write_bytes(whole[: len(whole) // 2])
    (class_folders / "bee" / "000.png").write_bytes(b"not an image")
    (class_folders / "cat" / "049.png").write_bytes(b"")
    return class_folders


def test_bad_images_fail_the_build_at_its_end_with_the_list(with_bad: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    with pytest.raises(
        ValueError, match=r"3 of 150 images cannot be read \(first: ant/010.png: .*--skip-bad"
    ) as caught:
        build(with_bad, out, resolution=16, workers=1)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    report = (tmp_path / "out.h5.bad.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in report] == ["ant/010.png", "bee/000.png", "cat/049.png"]
    assert all(line.split("\t")[1] for line in report)


def test_skip_bad_keeps_the_rest_in_order_and_records_what_is_missing(with_bad: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    summary = build(with_bad, out, resolution=16, workers=1, skip_bad=True)
    assert (summary.num_images, summary.num_missing) == (147, 3)
    removed = tmp_path / "removed"
    shutil.copytree(with_bad, removed)
    for key in ("ant/010.png", "bee/000.png", "cat/049.png"):
        (removed / key).unlink()
    build(removed, tmp_path / "removed.h5", resolution=16, workers=1)
    with TrainingFile(out) as ours, TrainingFile(tmp_path / "removed.h5") as expected:
        np.testing.assert_array_equal(ours.read(range(147)), expected.read(range(147)))
        assert ours.labels.tolist() == expected.labels.tolist()
        assert ours.header is not None
        assert [key for key, _ in ours.header.missing] == ["ant/010.png", "bee/000.png", "cat/049.png"]


def test_skip_bad_after_a_failed_build_decodes_nothing_again(
    with_bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.h5"
    with pytest.raises(ValueError):
        build(with_bad, out, resolution=16, workers=1)
    monkeypatch.setattr(build_module, "build_blocks", None)
    assert build(with_bad, out, resolution=16, workers=1, skip_bad=True).num_images == 147


def test_wrong_size_for_none_is_a_bad_image(class_folders: Path, tmp_path: Path) -> None:
    (class_folders / "ant" / "003.png").write_bytes(encode(noise(0, 16, 20)))
    with pytest.raises(ValueError, match=r"ant/003.png: is 20x16, and resize 'none' takes 16x16 only"):
        build(class_folders, tmp_path / "out.h5", resolution=16, resize="none", workers=1)


def test_a_class_that_loses_all_images_is_an_error(class_folders: Path, tmp_path: Path) -> None:
    for path in (class_folders / "bee").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"class 'bee' has no image that can be read"):
        build(class_folders, tmp_path / "out.h5", resolution=16, workers=1, skip_bad=True)


# Shards -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_merged_shards_equal_the_single_build(class_folders: Path, tmp_path: Path, count: int, bad: bool) -> None:
    if bad:
        (class_folders / "ant" / "010.png").write_bytes(b"broken")
        (class_folders / "cat" / "030.png").write_bytes(b"broken")
    options = {"resolution": 16, "workers": 1, "skip_bad": True}
    build(class_folders, tmp_path / "single.h5", **options)
    (tmp_path / "parts").mkdir()
    parts = []
    for i in range(count, 0, -1):
        parts.append(tmp_path / "parts" / f"{i}.h5")
        build(class_folders, parts[-1], shard=f"{i}/{count}", **options)
    merge(parts, tmp_path / "copied.h5", copy=True)
    assert (tmp_path / "copied.h5").read_bytes() == (tmp_path / "single.h5").read_bytes()
    merge(parts, tmp_path / "virtual.h5")
    with h5py.File(tmp_path / "virtual.h5") as file:
        assert file["images"].is_virtual
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(tmp_path / "virtual.h5", moved / "virtual.h5")
    shutil.move(tmp_path / "parts", moved / "parts")
    with TrainingFile(tmp_path / "single.h5") as single, TrainingFile(moved / "virtual.h5") as virtual:
        order = np.random.default_rng(0).integers(0, single.num_images, 500)
        np.testing.assert_array_equal(virtual.read(order), single.read(order))
        assert virtual.fingerprint == single.fingerprint
        assert virtual.labels.tolist() == single.labels.tolist()
    with h5py.File(moved / "virtual.h5") as file, TrainingFile(moved / "parts" / "1.h5") as first:
        np.testing.assert_array_equal(file["images"][: first.num_images], first.read(range(first.num_images)))


# A full disk --------------------------------------------------------------------------------------------------


def test_free_disk_is_checked_first(class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(build_module.shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    monkeypatch.setattr(build_module, "_decode", None)  # must not be reached
    with pytest.raises(OSError, match=r"out.h5 needs 0.00038 GB more, and .* has 0.0001 GB free"):
        build(class_folders, tmp_path / "out.h5", resolution=16, workers=1)


LIMITED = """
import resource, sys
from hamgan.data.build import build
resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000))
try:
    build(sys.argv[1], sys.argv[2], resolution=16, workers=1)
except OSError as error:
    print("caught:", error)
"""


def test_a_disk_that_fills_up_is_one_line_and_nothing_is_lost(class_folders: Path, tmp_path: Path) -> None:
    """The largest file size stands for the disk: the write of a later block fails."""
    out = tmp_path / "out.h5"
    done = subprocess.run([sys.executable, "-c", LIMITED, str(class_folders), str(out)], capture_output=True, text=True)
    assert "caught:" in done.stdout and os.strerror(errno.EFBIG) in done.stdout, done
    assert not out.exists()
    build(class_folders, out, resolution=16, workers=1)
    assert TrainingFile(out).num_images == 150


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("mount"), reason="mounting a small disk needs root")
def test_a_full_file_system(class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    try:
        (disk / "out.h5").write_bytes(b"old")
        with pytest.raises(OSError, match=r"GB free"):
            build(class_folders, disk / "out.h5", resolution=16, workers=1, overwrite=True)
        # Others fill the disk after the check.
        usage = shutil.disk_usage(disk)
        monkeypatch.setattr(build_module.shutil, "disk_usage", lambda path: usage._replace(free=10**9))
        with pytest.raises(OSError, match=r"No space left on device") as caught:
            build(class_folders, disk / "out.h5", resolution=16, workers=1, overwrite=True)
        assert "\n" not in str(caught.value)
        assert (disk / "out.h5").read_bytes() == b"old"
    finally:
        subprocess.run(["umount", str(disk)], check=True)

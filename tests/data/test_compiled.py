"""The compiled resize gives numpy's pixels, bit for bit, with every set of instructions, and is never needed."""

import ctypes
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_images import noise

from hamgan.data import compiled, resample
from hamgan.data.build import build

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(
    COMPILER is None or platform.machine() != "x86_64", reason="the C code is for x86-64, and takes a compiler"
)
SOURCE = Path(compiled.__file__).with_name("_resize.c")


def compile_to(path: Path, source: Path = SOURCE) -> Path:
    assert COMPILER is not None
    command = [COMPILER, "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(path), str(source)]
    subprocess.run(command, check=True)
    return path


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The library, compiled from the sources as they are now."""
    loaded = compiled.load(compile_to(tmp_path_factory.mktemp("c") / "_resize.so"))
    if loaded is None:
        pytest.skip("this processor has no AVX2")
    return loaded


@pytest.fixture(params=[1, 2], ids=["avx2", "avx512"])
def level(request: pytest.FixtureRequest, library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Have `resize_square` use the library with these instructions."""
    if request.param > library.hamgan_resize_level():
        pytest.skip("this processor has no AVX-512")
    monkeypatch.setattr(compiled, "_library", lambda: library)
    monkeypatch.setattr(compiled, "available", lambda: request.param)
    resample._plan.cache_clear()
    yield request.param
    resample._plan.cache_clear()


def numpy_resize(image: np.ndarray, resolution: int, resize: str) -> np.ndarray:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "available", lambda: 0)
        return resample.resize_square(image, resolution, resize)


@needs_compiler
@pytest.mark.parametrize("resize", ["lanczos", "box", "bilinear"])
def test_all_sizes_equal_numpy(level: int, resize: str) -> None:
    """Random sizes up and down, crops at any place in the memory, and pixels that saturate both passes."""
    rng = np.random.default_rng(level)
    sizes = [(375, 500, 128), (22, 22, 4), (22, 23, 5), (23, 23, 4), (24, 22, 128), (1200, 1100, 64), (129, 128, 127)]
    sizes += [tuple(rng.integers((22, 22, 4), (260, 260, 140))) for _ in range(60)]  # type: ignore[misc]
    for number, (height, width, resolution) in enumerate(sizes):
        image = noise(number, height, width)
        if number % 2:
            image = np.where(image > 127, 255, 0).astype(np.uint8)
        ours = resample.resize_square(image, int(resolution), resize)
        np.testing.assert_array_equal(ours, numpy_resize(image, int(resolution), resize), err_msg=f"{number}: {level}")


@needs_compiler
def test_ties_are_rounded_to_even(level: int) -> None:
    """Halves come about where two pixels have equal weights: box from 2 to 1."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[::2] = np.arange(64, dtype=np.uint8)[None, :, None]
    image[1::2] = image[::2] + 1
    ours = resample.resize_square(image, 32, "box")
    np.testing.assert_array_equal(ours, numpy_resize(image, 32, "box"))
    assert ours[0, 0, 0] == 1  # the columns 0.5 -> 0 and 1.5 -> 2


@needs_compiler
def test_nothing_outside_of_the_result_is_written(level: int) -> None:
    for resolution in (4, 5, 6, 7, 33):
        memory = np.full(resolution * resolution * 3 + 128, 77, np.uint8)
        out = memory[64:-64].reshape(resolution, resolution, 3)
        image = noise(resolution, 40, 50)
        assert resample.resize_square(image, resolution, "lanczos", out) is out
        assert (memory[:64] == 77).all() and (memory[-64:] == 77).all()
        np.testing.assert_array_equal(out, numpy_resize(image, resolution, "lanczos"))


@needs_compiler
def test_what_it_does_not_take_is_left_to_numpy(level: int) -> None:
    planes = np.ascontiguousarray(noise(0, 40, 40).transpose(2, 0, 1)).transpose(1, 2, 0)
    for image in (noise(0, 21, 30), planes, noise(0, 40, 40)[:, ::-1]):
        assert not compiled.takes(image[: min(image.shape[:2]), : min(image.shape[:2])], 16)
        np.testing.assert_array_equal(
            resample.resize_square(image, 16, "lanczos"), numpy_resize(np.ascontiguousarray(image), 16, "lanczos")
        )
    assert not compiled.takes(noise(0, 40, 40), 3) and compiled.takes(noise(0, 40, 40), 4)


@needs_compiler
def test_files_are_the_same_with_and_without(level: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build("emoji", tmp_path / "with.h5", resolution=16, workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "available", lambda: 0)
        build("emoji", tmp_path / "without.h5", resolution=16, workers=1)
    assert (tmp_path / "with.h5").read_bytes() == (tmp_path / "without.h5").read_bytes()


@needs_compiler
def test_a_library_of_another_version_is_not_used(tmp_path: Path) -> None:
    other = tmp_path / "other.c"
    other.write_text(SOURCE.read_text().replace("hamgan_resize_version(void) { return 2; }",
                                                "hamgan_resize_version(void) { return 3; }"))  # fmt: skip
    assert compiled.load(compile_to(tmp_path / "other.so", other)) is None
    (tmp_path / "empty.c").write_text("int nothing;")
    assert compiled.load(compile_to(tmp_path / "empty.so", tmp_path / "empty.c")) is None


def test_what_is_no_library_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("hello")
    assert compiled.load(tmp_path / "text.so") is None
    assert compiled.load(tmp_path / "absent.so") is None

"""Decoding a JPEG's centred square alone gives a whole decode's pixels and errors, bit for bit, and is never needed."""

import io
import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_images import encode, noise, smooth

from hamgan.data import build as build_module
from hamgan.data import crop_jpeg, worker
from hamgan.data.build import build
from hamgan.data.crop_jpeg import SquareDecoder
from hamgan.data.decode import decode, decode_square
from hamgan.data.resample import centre_square

WHITE = (255, 255, 255)
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
SOURCE = Path(crop_jpeg.__file__).with_name("_jpeg.c")


def compile_to(path: Path, source: Path = SOURCE) -> Path:
    """Compile to a library, or skip the test where there is no compiler or no jpeglib.h."""
    if COMPILER is None:
        pytest.skip("the C code takes a compiler")
    check = subprocess.run(
        [COMPILER, "-fsyntax-only", "-xc", "-"], input="#include <stdio.h>\n#include <jpeglib.h>\n", text=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    if check.returncode:
        pytest.skip("the C code takes libjpeg-turbo's header jpeglib.h")
    command = [COMPILER, "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{SOURCE.parent}"]
    subprocess.run([*command, "-o", str(path), str(source)], check=True)
    return path


@pytest.fixture(scope="module", params=[True, False], ids=["own Huffman", "libjpeg's"])
def square_decoder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> SquareDecoder:
    """A decoder of the sources as they are now."""
    decoder = crop_jpeg.load(compile_to(tmp_path_factory.mktemp("c") / "_jpeg.so"), own_huffman=request.param)
    if decoder is None:
        pytest.skip("Pillow's libjpeg-turbo is not one that can be called")
    return decoder


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth picture, noise, or saturated noise."""
    pixels = smooth(seed, height, width) if seed % 3 == 0 else noise(seed, height, width)
    return np.where(pixels > 127, 255, 0).astype(np.uint8) if seed % 3 == 2 else pixels


def whole(data: bytes, resize: str) -> np.ndarray:
    """Decode all and cut."""
    pixels = decode(data, WHITE)
    top, left, side = centre_square(*pixels.shape[:2], resize)
    return pixels[top : top + side, left : left + side]


def random_sizes(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    sizes = [(375, 500), (500, 375), (1, 1), (1, 40), (40, 1), (16, 16), (16, 17), (17, 16), (33, 100), (100, 33)]
    return sizes + [tuple(int(v) for v in rng.integers(2, 200, 2)) for _ in range(count)]  # type: ignore[misc]


@pytest.mark.parametrize("resize", ["lanczos", "tfgan"])
@pytest.mark.parametrize("kind", ["4:4:4", "4:2:2", "4:2:0", "gray", "4:2:0, restarts", "4:2:0, optimized"])
def test_squares_equal_the_whole_bit_for_bit(square_decoder: SquareDecoder, kind: str, resize: str) -> None:
    rng = np.random.default_rng(len(kind))
    options: dict[str, object] = {"subsampling": kind[:5]} if kind != "gray" else {}
    if "restarts" in kind:
        options["restart_marker_blocks"] = 3
    options["optimize"] = "optimized" in kind
    place = partial(centre_square, resize=resize)
    before, sizes = square_decoder.taken_over, random_sizes(rng, 40)
    for seed, (height, width) in enumerate(sizes):
        pixels = picture(seed, height, width)
        data = encode(
            pixels[..., 0] if kind == "gray" else pixels, "JPEG", quality=int(rng.integers(5, 101)), **options
        )
        square = square_decoder.square(data, place)
        assert square is not None, "this kind is not left to others"
        np.testing.assert_array_equal(square, whole(data, resize), err_msg=f"{height}x{width}")
    if before >= 0:
        assert square_decoder.taken_over - before == (0 if "restarts" in kind else len(sizes))


@pytest.mark.parametrize("subsampling", ["440", "411"])
@pytest.mark.parametrize("size", [(90, 200), (200, 90), (61, 127)])
def test_rare_sampling(square_decoder: SquareDecoder, subsampling: str, size: tuple[int, int]) -> None:
    simplejpeg = pytest.importorskip("simplejpeg", reason="Pillow does not write this")
    data = simplejpeg.encode_jpeg(noise(0, *size), quality=90, colorsubsampling=subsampling)
    taken = square_decoder.square(data, partial(centre_square, resize="box"))
    assert (taken is None) == (subsampling == "411")
    square = decode_square(data, WHITE, partial(centre_square, resize="box"), square_decoder)
    np.testing.assert_array_equal(square, whole(data, "box"))


def unusual() -> dict[str, bytes]:
    rotated = Image.Exif()
    rotated[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(smooth(0, 60, 90)).convert("CMYK").save(buffer, "JPEG")
    return {
        "progressive": encode(noise(0, 60, 90), "JPEG", progressive=True),
        "rotated": encode(noise(1, 60, 90), "JPEG", exif=rotated),
        "CMYK": buffer.getvalue(),
        "PNG": encode(noise(2, 60, 90)),
        "RGB": encode(noise(3, 60, 90), "JPEG", keep_rgb=True),
    }


@pytest.mark.parametrize("kind", unusual())
def test_what_is_unusual_has_the_same_pixels(square_decoder: SquareDecoder, kind: str) -> None:
    data = unusual()[kind]
    np.testing.assert_array_equal(
        decode_square(data, WHITE, partial(centre_square, resize="box"), square_decoder), whole(data, "box")
    )  # fmt: skip
    if kind in ("progressive", "CMYK", "PNG"):
        assert square_decoder.square(data, partial(centre_square, resize="box")) is None


def outcome(data: bytes, decoder: SquareDecoder | None) -> object:
    """Pixels as bytes, or the reason why there are none."""
    try:
        square = decode_square(data, WHITE, partial(centre_square, resize="lanczos"), decoder)
    except ValueError as error:
        return str(error)
    return square.shape, square.tobytes()


@pytest.mark.parametrize("shape", [(120, 60), (60, 120)])
def test_damage_anywhere_has_the_same_outcome(square_decoder: SquareDecoder, shape: tuple[int, int]) -> None:
    """Also damage beside the square, whose pixels nobody sees: in the last rows of a tall image, or cut off."""
    rng = np.random.default_rng(0)
    data = encode(noise(0, *shape), "JPEG", quality=80, subsampling="4:2:0")
    cases = [data[:size] for size in rng.integers(0, len(data), 150)] + [data[:-1], data[:-2], data[:-3], data[:-10]]
    for _ in range(300):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        cases.append(bytes(damaged))
    damaged_end = bytearray(data)
    damaged_end[-40:-30] = b"\xff\xc4" * 5
    different = set()
    for number, case in enumerate([*cases, bytes(damaged_end)]):
        result = outcome(case, square_decoder)
        assert result == outcome(case, None), number
        different.add(type(result))
    assert different == {str, tuple}
    # And an undamaged one after all these.
    np.testing.assert_array_equal(
        square_decoder.square(data, partial(centre_square, resize="box")), whole(data, "box")
    )  # fmt: skip


@pytest.mark.parametrize("marker", [b"\xff\xdb", b"\xff\xc4"], ids=["quantization", "Huffman"])
@pytest.mark.parametrize("number", [0, 1])
def test_the_tables_of_the_image_before_serve_no_other(
    square_decoder: SquareDecoder, marker: bytes, number: int
) -> None:
    data = encode(noise(0, 40, 60), "JPEG", quality=90)
    place = -1
    for _ in range(number + 1):
        place = data.index(marker, place + 1)
    without = data[: place + 1] + b"\xe5" + data[place + 2 :]  # an application's segment, which nobody reads
    fine = partial(centre_square, resize="box")
    assert square_decoder.square(data, fine) is not None
    assert square_decoder.square(without, fine) is None
    assert outcome(without, square_decoder) == outcome(without, None)
    np.testing.assert_array_equal(square_decoder.square(data, fine), whole(data, "box"))


def test_files_are_the_same_with_and_without(square_decoder: SquareDecoder, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    root = tmp_path / "source" / "class"
    root.mkdir(parents=True)
    for seed in range(70):
        height, width = np.random.default_rng(seed).integers(20, 90, 2)
        options = {"subsampling": seed % 3, "progressive": seed % 5 == 0}
        (root / f"{seed:02d}.jpg").write_bytes(encode(noise(seed, height, width), "JPEG", **options))
    for resize in ("lanczos", "tfgan"):
        files = []
        for name, decoder in (("with", square_decoder), ("without", None)):
            monkeypatch.setattr(worker, "square_decoder", lambda decoder=decoder: decoder)
            build(root.parent, tmp_path / f"{resize}-{name}.h5", resolution=32, resize=resize, workers=1)
            files.append((tmp_path / f"{resize}-{name}.h5").read_bytes())
        assert files[0] == files[1]


def test_a_library_of_another_version_is_not_used(tmp_path: Path) -> None:
    for number, change in enumerate(
        (("hamgan_jpeg_version(void) { return 3; }", "hamgan_jpeg_version(void) { return 4; }"),
         ("JPEG_LIB_VERSION, sizeof", "80, sizeof"), ("sizeof(struct jpeg_decompress_struct)", "8"))
    ):  # fmt: skip
        assert SOURCE.read_text().count(change[0]) == 1
        (tmp_path / "other.c").write_text(SOURCE.read_text().replace(*change))
        assert crop_jpeg.load(compile_to(tmp_path / f"{number}.so", tmp_path / "other.c")) is None


def test_it_is_said_that_building_could_be_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("jpg", "png"):
        (tmp_path / name / "class").mkdir(parents=True)
        (tmp_path / name / "class" / f"a.{name}").write_bytes(encode(noise(0, 20, 20)))
    said = {}
    for name, decoder, resize in (
        ("jpg", False, "box"),
        ("jpg", False, "none"),
        ("png", False, "box"),
        ("jpg", True, "box"),
    ):
        monkeypatch.setattr(build_module, "has_own_huffman", lambda decoder=decoder: decoder)
        out = tmp_path / f"{len(said)}.h5"
        build(tmp_path / name, out, resolution=20, resize=resize, workers=1)
        said[name, decoder, resize] = "nearly twice as long" in capsys.readouterr().out
    assert [key for key, value in said.items() if value] == [("jpg", False, "box")]


def test_what_is_no_library_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("hello")
    assert crop_jpeg.load(tmp_path / "text.so") is None
    assert crop_jpeg.load(tmp_path / "absent.so") is None


def test_an_old_libjpeg_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = compile_to(tmp_path / "_jpeg.so")
    for version in ("2.1.5", None):
        monkeypatch.setattr(crop_jpeg.features, "version", lambda name, version=version: version)
        assert crop_jpeg.load(path) is None

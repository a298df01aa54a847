"""Every kind of image that a data set may hold becomes the right RGB pixels, or a reason."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image, ImageOps
from tiny_images import encode, noise, png16, smooth

from hamgan.data import decode as decode_module
from hamgan.data.decode import decode

WHITE = (255, 255, 255)


def ramp() -> np.ndarray:
    """All byte values in each channel, (16, 16, 3)."""
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    return np.stack([values, values.T, 255 - values], axis=-1)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_every_byte_value_survives_lossless_formats(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decode(encode(ramp(), kind, **options), WHITE), ramp())


def test_grayscale_and_bilevel_become_three_equal_channels() -> None:
    gray = ramp()[..., 0]
    np.testing.assert_array_equal(decode(encode(gray), WHITE), np.repeat(gray[..., None], 3, -1))
    bits = gray > 100
    buffer = io.BytesIO()
    Image.fromarray(bits).save(buffer, "PNG")
    np.testing.assert_array_equal(decode(buffer.getvalue(), WHITE)[..., 1], bits * np.uint8(255))


@pytest.mark.parametrize("color", [False, True])
def test_of_sixteen_bits_the_upper_eight_are_kept(color: bool) -> None:
    values = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16) + np.uint16(77)
    image = np.stack([values, values[::-1], values.T], -1) if color else values
    expected = (image >> 8).astype(np.uint8)
    decoded = decode(png16(image), WHITE)
    np.testing.assert_array_equal(decoded, expected if color else np.repeat(expected[..., None], 3, -1))


def test_palette_with_and_without_transparency() -> None:
    colors = np.asarray([(10, 20, 30), (200, 100, 0), (0, 255, 7)], np.uint8)
    index = np.random.default_rng(0).integers(0, 3, (8, 8)).astype(np.uint8)
    image = Image.fromarray(index, "P") if False else Image.frombytes("P", (8, 8), index.tobytes())
    image.putpalette(colors.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    np.testing.assert_array_equal(decode(buffer.getvalue(), WHITE), colors[index])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=1)
    expected = colors.copy()
    expected[1] = (9, 8, 7)
    np.testing.assert_array_equal(decode(buffer.getvalue(), (9, 8, 7)), expected[index])


@pytest.mark.parametrize("background", [WHITE, (0, 0, 0), (12, 200, 99)])
def test_alpha_is_composited_to_the_nearest_integer(background: tuple[int, int, int]) -> None:
    rgba = np.random.default_rng(1).integers(0, 256, (32, 32, 4), np.uint8)
    alpha = rgba[..., 3:] / 255
    exact = rgba[..., :3] * alpha + np.asarray(background) * (1 - alpha)
    assert np.abs(decode(encode(rgba), background) - exact).max() <= 0.5 + 1e-9


def test_gray_with_alpha_is_composited() -> None:
    la = np.asarray([[[100, 255], [100, 0]]], np.uint8)
    np.testing.assert_array_equal(decode(encode(la), (1, 2, 3))[0], [[100, 100, 100], [1, 2, 3]])


def test_cmyk_jpeg_becomes_rgb() -> None:
    rgb = smooth(0, 40, 56)
    buffer = io.BytesIO()
    Image.fromarray(rgb).convert("CMYK").save(buffer, "JPEG", quality=98)
    assert Image.open(io.BytesIO(buffer.getvalue())).mode == "CMYK"
    assert np.abs(decode(buffer.getvalue(), WHITE).astype(int) - rgb).mean() < 4


def test_a_sampling_without_a_name_is_no_other_error() -> None:
    data = bytearray(encode(noise(0, 40, 60), "JPEG"))
    frame = data.index(b"\xff\xc0")
    for sampling in (0x14, 0x31, 0x0F):
        data[frame + 11] = sampling
        with contextlib.suppress(ValueError):
            assert decode(bytes(data), (255, 255, 255)).shape == (40, 60, 3)


def test_png_named_jpeg_is_read_by_its_content(tmp_path, built) -> None:
    (tmp_path / "s" / "a").mkdir(parents=True)
    (tmp_path / "s" / "a" / "n02105855_2933.JPEG").write_bytes(encode(ramp()))
    np.testing.assert_array_equal(built(tmp_path / "s", resize="none").read([0])[0], ramp())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_rotation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(smooth(2, 24, 40), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    decoded = decode(data, WHITE)
    assert decoded.shape == ((40, 24, 3) if orientation >= 5 else (24, 40, 3))
    np.testing.assert_array_equal(decoded, np.asarray(upright))


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"quality": 30}]
)
@pytest.mark.parametrize("gray", [False, True])
def test_the_faster_decoder_gives_pillow_s_pixels(options: dict, gray: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg")
    pixels = smooth(3, 75, 101) // 2 + noise(4, 75, 101) // 2
    data = encode(pixels[..., 0] if gray else pixels, "JPEG", **options)
    fast = decode(data, WHITE)
    monkeypatch.setattr(decode_module, "simplejpeg", None)
    np.testing.assert_array_equal(fast, decode(data, WHITE))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated_files_are_errors(kind: str) -> None:
    data = encode(noise(5, 64, 64), kind)
    for length in (len(data) * 2 // 3, 40):
        with pytest.raises(ValueError):
            decode(data[:length], WHITE)


def test_what_is_no_image_is_an_error() -> None:
    for data in (b"", b"hello, world", b"\xff\xd8\xff\xe0 not a jpeg"):
        with pytest.raises(ValueError):
            decode(data, WHITE)


def test_pixels_without_a_defined_range_are_an_error() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(buffer, "TIFF")
    with pytest.raises(ValueError, match="floating-point"):
        decode(buffer.getvalue(), WHITE)

"""The crop and the filters: exact arithmetic, true to their kernels, antialiased where they say so."""

import numpy as np
import pytest
from PIL import Image
from tiny_images import noise, smooth

from hamgan.data import compiled
from hamgan.data.resample import resize_square, resize_weights

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
}
SIZES = [(375, 128), (128, 32), (100, 33), (64, 65), (20, 50), (7, 4), (4, 9), (1030, 16)]


@pytest.fixture(autouse=True)
def without_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """test_compiled.py holds the compiled code to these pixels."""
    monkeypatch.setattr(compiled, "available", lambda: 0)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("sizes", SIZES)
def test_every_output_is_the_rounded_integer_sum(name: str, sizes: tuple[int, int]) -> None:
    """What a BLAS computes in float32 equals the same sums in 64-bit integers, bit for bit."""
    size_in, size_out = sizes
    image = noise(0, size_in, size_in)
    weights = np.rint(resize_weights(size_in, size_out, name) * 2**14).astype(np.int64)
    rows = np.einsum("oi,iwc->owc", weights, image.astype(np.int64))
    rows = np.rint(rows / 2**14).astype(np.int64)
    full = np.einsum("oi,hic->hoc", weights, rows)
    expected = np.clip(np.rint(full / 2**14), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(resize_square(image, size_out, name), expected)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("sizes", SIZES)
def test_partial_sums_fit_into_float32(name: str, sizes: tuple[int, int]) -> None:
    """The bound that makes the arithmetic exact, for the worst possible image."""
    weights = resize_weights(*sizes, name)
    largest = 255 * np.maximum(weights, 0).sum(axis=1).max() * np.abs(weights).sum(axis=1).max()
    assert largest * 2**14 < 2**24


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("sizes", SIZES)
def test_close_to_the_unrounded_filter(name: str, sizes: tuple[int, int]) -> None:
    size_in, size_out = sizes
    image = noise(1, size_in, size_in)
    weights = resize_weights(size_in, size_out, name)
    exact = np.clip(np.einsum("oi,pj,ijc->opc", weights, weights, image.astype(float), optimize=True), 0, 255)
    # half a level for each rounding; the first passes through weights whose absolute sum is up to 1.4
    assert np.abs(resize_square(image, size_out, name) - exact).max() <= 0.5 + 0.5 * 1.5


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("sizes", SIZES)
def test_close_to_pillow_where_nothing_saturates(name: str, sizes: tuple[int, int]) -> None:
    size_in, size_out = sizes
    image = (smooth(2, size_in, size_in) // 2 + 64).astype(np.uint8)
    theirs = np.asarray(Image.fromarray(image).resize((size_out, size_out), FILTERS[name]))
    difference = np.abs(resize_square(image, size_out, name).astype(int) - theirs)
    assert difference.max() <= 2 and difference.mean() < 0.4


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("value", [0, 1, 63, 128, 255])
def test_flat_images_stay_as_they_are(name: str, value: int) -> None:
    for size_in, size_out in SIZES:
        assert (resize_square(np.full((size_in, size_in, 3), value, np.uint8), size_out, name) == value).all()


@pytest.mark.parametrize("name", FILTERS)
def test_filters_are_antialiased(name: str) -> None:
    """Stripes of one pixel average to gray; a filter without antialias picks black or white."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    inner = resize_square(stripes, 32, name)[4:-4, 4:-4]
    assert np.abs(inner.astype(int) - 127.5).max() < 3


@pytest.mark.parametrize("name", [*FILTERS, "tfgan", "none"])
def test_no_resize_is_lossless(name: str) -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    np.testing.assert_array_equal(resize_square(image, 16, name), image)


@pytest.mark.parametrize("shape", [(10, 16), (16, 11), (11, 16)])
def test_the_crop_is_the_largest_centred_square(shape: tuple[int, int]) -> None:
    image = noise(3, *shape)
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    np.testing.assert_array_equal(resize_square(image, side, "box"), image[top : top + side, left : left + side])


def test_none_demands_the_exact_size() -> None:
    with pytest.raises(ValueError, match="is 20x16, and resize 'none' takes 16x16 only"):
        resize_square(noise(4, 16, 20), 16, "none")


def reference_crop_and_resize(image: np.ndarray, out: int) -> np.ndarray:
    """TF-GAN's input, pixel by pixel from the definition: margins rounded up, corners on corners."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = int(np.ceil((height - side) / 2)), int(np.ceil((width - side) / 2))
    result = np.zeros((out, out, 3))
    for y in range(out):
        for x in range(out):
            v, u = top + y * (side - 1) / (out - 1), left + x * (side - 1) / (out - 1)
            y0, x0 = int(v), int(u)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            a, b = v - y0, u - x0
            result[y, x] = (1 - a) * ((1 - b) * image[y0, x0] + b * image[y0, x1]) + a * (
                (1 - b) * image[y1, x0] + b * image[y1, x1]
            )
    return result


@pytest.mark.parametrize("shape", [(37, 50), (51, 38), (40, 40), (12, 9)])
def test_tfgan_is_the_official_input_pipeline(shape: tuple[int, int]) -> None:
    image = noise(5, *shape)
    ours = resize_square(image, 16, "tfgan")
    assert np.abs(ours - reference_crop_and_resize(image, 16)).max() <= 0.501
    # It keeps the corners of the crop, which no antialiased filter does.
    side = min(shape)
    top, left = (shape[0] - side + 1) // 2, (shape[1] - side + 1) // 2
    np.testing.assert_array_equal(ours[0, 0], image[top, left])
    np.testing.assert_array_equal(ours[-1, -1], image[top + side - 1, left + side - 1])


# tf.image.crop_and_resize of TensorFlow 2, called as the official HamGAN does, on noise(5, 13, 18) to 6x6, red channel.
TENSORFLOW_RED = [
    [153.0, 126.0, 113.6, 36.8, 11.8, 118.0],
    [123.0, 139.2, 202.2, 140.2, 162.0, 172.2],
    [63.0, 162.12, 111.0, 29.36, 88.4, 80.2],
    [183.0, 184.92, 52.48, 140.72, 72.04, 116.2],
    [50.8, 88.64, 102.12, 84.04, 182.16, 152.6],
    [124.0, 115.6, 141.4, 164.8, 188.6, 30.0],
]


def test_tfgan_equals_tensorflow() -> None:
    ours = resize_square(noise(5, 13, 18), 6, "tfgan")[..., 0]
    np.testing.assert_array_equal(ours, np.rint(TENSORFLOW_RED))

"""From an encoded image, whatever its mode, to RGB pixels.

JPEGs go through simplejpeg where it is installed and to Pillow else: both are libjpeg-turbo and give the same
pixels; simplejpeg is faster. Whatever simplejpeg does not take, and everything that is not a plain JPEG, is Pillow's.
"""

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hamgan.data.crop_jpeg import MOST_PIXELS, Place, SquareDecoder

try:
    import simplejpeg  # type: ignore[import-untyped]
except ImportError:
    simplejpeg = None

Color = tuple[int, int, int]


def decode_square(data: bytes, background: Color, place: Place, decoder: SquareDecoder | None) -> NDArray[np.uint8]:
    """Decode a square of an image file: as `decode`, but nothing beside it if that can be avoided.

    Args:
        data: A JPEG, PNG, WebP, ... file.
        background: RGB, 0..255, behind transparent pixels.
        place: Tells of a height and a width where the square is: (top, left, side), in pixels.
        decoder: Decodes squares of JPEGs; None where it cannot be had.

    Returns:
        Pixels, (side, side, 3), valid until the decoder's next call.

    Raises:
        ValueError: If the file is damaged, truncated or in no format that can become RGB.
    """
    if decoder is not None and data[:2] == b"\xff\xd8" and not _may_be_rotated(data):
        square = decoder.square(data, place)
        if square is not None:
            return square
    image = decode(data, background)
    top, left, side = place(*image.shape[:2])
    return image[top : top + side, left : left + side]


def decode(data: bytes, background: Color) -> NDArray[np.uint8]:
    """Decode an image file to RGB.

    EXIF rotation is applied. Grayscale, palette, CMYK and YCbCr images become RGB; of 16 bits per channel the upper
    8 are kept; alpha is composited on `background`. Of an animation the first frame counts.

    Args:
        data: A JPEG, PNG, WebP, ... file.
        background: RGB, 0..255, behind transparent pixels.

    Returns:
        Pixels, (H, W, 3).

    Raises:
        ValueError: If the file is damaged, truncated or in no format that can become RGB.
    """
    if simplejpeg is not None and data[:2] == b"\xff\xd8" and not _may_be_rotated(data):
        try:
            height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
            if colors in ("YCbCr", "Gray", "RGB") and height * width <= MOST_PIXELS:
                return simplejpeg.decode_jpeg(data, "RGB")
        except (ValueError, KeyError):  # KeyError: a sampling that simplejpeg has no name for
            pass  # Pillow decides whether it is an error: some warnings are harmless
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd EXIF and large images; errors still come
            image: Image.Image = Image.open(io.BytesIO(data))
            image.load()
            image = ImageOps.exif_transpose(image)
            return to_rgb(image, background)
    except Exception as error:  # Pillow's readers raise anything on a damaged file
        reason = "not an image that Pillow knows" if type(error).__name__ == "UnidentifiedImageError" else str(error)
        raise ValueError(reason or type(error).__name__) from None


def _may_be_rotated(data: bytes) -> bool:
    """Say whether a JPEG's EXIF or XMP, which lie in segments before the pixels, rotate it."""
    place = 2
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != b"\xe1":
        if data[place + 1 : place + 2] in (b"\xda", b"\xd9", b""):
            return False
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    try:
        orientation = Image.open(io.BytesIO(data)).getexif().get(0x0112, 1)
    except Exception:  # a damaged header: Pillow's full decode will say what it is
        return True
    return orientation != 1


def to_rgb(image: Image.Image, background: Color) -> NDArray[np.uint8]:
    """Turn a Pillow image of any mode into RGB pixels, (H, W, 3).

    Raises:
        ValueError: If the mode has no defined range (32-bit integers, floats).
    """
    mode = image.mode
    if mode.startswith("I;16") or mode == "I":
        values = np.asarray(image).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ValueError("has 32-bit values; up to 16 bits per channel are read")
        # The upper byte, as Pillow takes of 16-bit RGB, so that gray and colour agree.
        gray = (values >> 8).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(gray[..., None], (*gray.shape, 3)))
    if mode == "F":
        raise ValueError("has floating-point pixels, whose range is not defined")
    if image.has_transparency_data or mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return composite(np.asarray(image.convert("RGBA")), background)
    return np.asarray(image if mode == "RGB" else image.convert("RGB"))


def composite(rgba: NDArray[np.uint8], background: Color) -> NDArray[np.uint8]:
    """Lay (H, W, 4) pixels, not premultiplied, over a colour; rounded to the nearest integer, (H, W, 3)."""
    alpha = rgba[..., 3:].astype(np.uint32)
    color = rgba[..., :3] * alpha + np.asarray(background, np.uint32) * (255 - alpha)
    return ((color + 127) // 255).astype(np.uint8)


def array_to_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn (H, W) or (H, W, 3) pixels into (H, W, 3)."""
    if pixels.ndim == 3:
        return pixels
    return np.ascontiguousarray(np.broadcast_to(pixels[..., None], (*pixels.shape, 3)))

"""PNG files written without a library are read by one as the pixels that went in."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from hamgan.sampling.png import END, encode_pngs


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 1, 1), (3, 3, 5, 7), (1, 3, 128, 128)])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_every_pixel_comes_back(shape: tuple[int, ...], level: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    for image, content in zip(images, encode_pngs(images, level), strict=True):
        assert content.endswith(END)
        with Image.open(io.BytesIO(content)) as picture:
            picture.verify()  # the checksums of the chunks
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.format == "PNG" and picture.mode == "RGB"
            assert np.array_equal(np.asarray(picture), image.permute(1, 2, 0))


def test_smooth_pictures_get_small_and_no_images_are_no_files() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).expand(1, 3, 64, 64)
    assert len(next(encode_pngs(ramp))) < 600
    assert list(encode_pngs(torch.empty(0, 3, 8, 8, dtype=torch.uint8))) == []

"""The embedded set: lossless at its own size, a named filter below it, and read back through loader and sampler."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hamgan.data.build as build_module
from hamgan.data.build import build
from hamgan.data.hdf5 import TrainingFile

EMOJI_ZIP = Path(build_module.__file__).parent / "emoji" / "fluent-emoji-128.zip"


@pytest.fixture(scope="module")
def emoji128(tmp_path_factory: pytest.TempPathFactory) -> TrainingFile:
    path = tmp_path_factory.mktemp("emoji") / "emoji128.h5"
    build("emoji", path, resolution=128)
    return TrainingFile(path)


def test_emoji_at_its_own_size_is_lossless(emoji128: TrainingFile) -> None:
    with zipfile.ZipFile(EMOJI_ZIP) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".webp"))
        assert emoji128.num_images == len(names) == 1868
        for index in range(0, 1868, 37):
            picture = Image.open(io.BytesIO(archive.read(names[index]))).convert("RGBA")
            expected = Image.new("RGB", picture.size, (255, 255, 255))
            expected.paste(picture, mask=picture.getchannel("A"))
            np.testing.assert_array_equal(emoji128.read([index])[0], np.asarray(expected))
            assert emoji128.class_names[emoji128.labels[index]] == names[index].split("/")[0]


def test_emoji_has_nine_sorted_classes(emoji128: TrainingFile) -> None:
    assert list(emoji128.class_names) == sorted(emoji128.class_names)
    assert np.bincount(emoji128.labels).tolist() == [85, 157, 253, 128, 261, 361, 167, 238, 218]


def test_building_again_returns_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "emoji32.h5"
    build("emoji", path, resolution=32)
    before = path.stat().st_mtime_ns
    assert build("emoji", path, resolution=32).found
    assert path.stat().st_mtime_ns == before
    assert "already there" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"holds something else \(resolution\).*--overwrite"):
        build("emoji", path, resolution=64)
    assert path.stat().st_mtime_ns == before

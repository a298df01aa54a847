"""Small sources and training files made on the spot."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_images import write_class_folders

from hamgan.data.build import build
from hamgan.data.hdf5 import TrainingFile


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """A folder with 150 images of 16x16 in three classes."""
    root = tmp_path / "pictures"
    write_class_folders(root, {"ant": 70, "bee": 30, "cat": 50})
    return root


@pytest.fixture
def training_file(class_folders: Path, tmp_path: Path) -> Path:
    """A training file of the class folders, 16x16."""
    path = tmp_path / "pictures.h5"
    build(class_folders, path, resolution=16, workers=1)
    return path


@pytest.fixture
def built(tmp_path: Path) -> Callable[..., TrainingFile]:
    """Builds a source into a fresh file and opens it."""
    count = iter(range(1000))

    def run(source: Path, *, resolution: int = 16, **options: object) -> TrainingFile:
        path = tmp_path / f"built-{next(count)}.h5"
        build(source, path, resolution=resolution, workers=1, **options)  # type: ignore[arg-type]
        return TrainingFile(path)

    return run

"""Where the reference vectors are, and small networks that every package's tests share."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hamgan.data.build import build
from hamgan.models.discriminator import DiscriminatorConfig
from hamgan.models.generator import GeneratorConfig
from hamgan.nn import kernel_library
from hamgan.nn.hamburger import HamburgerConfig

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def reference() -> Callable[[str], Path]:
    """Return the path of a reference file, skipping the test where the file is not at hand."""

    def find(name: str) -> Path:
        roots = [HERE / "reference", HERE.parent.parent / "shared" / "reference"]
        if "HAMGAN_REFERENCE" in os.environ:
            roots.append(Path(os.environ["HAMGAN_REFERENCE"]))
        for root in roots:
            if (root / name).exists():
                return root / name
        pytest.skip(f"reference vectors {name} are larger than a repository should hold; see tests/reference/README.md")

    return find


@pytest.fixture(params=["kernels", "torch"])
def with_and_without_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test with the compiled kernels, where there are any, and without."""
    with contextlib.nullcontext() if request.param == "kernels" else kernel_library.switched_off():
        yield


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference over the largest magnitude."""
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


def load_arrays(path: Path) -> dict[str, Tensor]:
    """Read an .npz of plain arrays as tensors."""
    with np.load(path, allow_pickle=False) as file:
        return {name: torch.from_numpy(np.array(file[name])) for name in file.files}


@pytest.fixture(scope="session")
def tiny_generator_config() -> GeneratorConfig:
    """A generator of 32x32 images that a test can afford."""
    return GeneratorConfig(
        resolution=32,
        channels=4,
        num_classes=3,
        z_dim=16,
        embedding_dim=8,
        context="ham",
        context_resolutions=(16,),
        ham=HamburgerConfig(rank=4),
    )


@pytest.fixture
def tiny_discriminator_config() -> DiscriminatorConfig:
    """Its discriminator."""
    return DiscriminatorConfig(
        resolution=32,
        channels=4,
        num_classes=3,
        context="ham",
        context_resolutions=(16,),
        ham=HamburgerConfig(rank=4),
    )


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training file of 18 images of noise, 32x32, in three classes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(18):
        folder = root / "source" / f"class{index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    build(root / "source", root / "data.h5", resolution=32, resize="none", workers=1)
    return root / "data.h5"

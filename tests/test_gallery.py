"""Commands that draw, from end to end on a tiny snapshot."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hamgan import snapshot
from hamgan.cli import main
from hamgan.gallery import nearest_images
from hamgan.models.generator import Generator, GeneratorConfig
from hamgan.sampling.draw import draw_images
from hamgan.sampling.standing import measure_standing_statistics


@pytest.fixture
def shot(tmp_path: Path, tiny_generator_config: GeneratorConfig) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "snapshot-00000001.safetensors"
    G = Generator(tiny_generator_config).eval()
    snapshot.write(path, snapshot.Snapshot(generator=G, class_names=("class0", "class1", "class2")))
    return path


def test_nearest_rows_are_those_of_a_dense_search_over_blocks() -> None:
    rng = np.random.default_rng(0)
    pool, queries = rng.normal(size=(9000, 6)).astype(np.float32), rng.normal(size=(5, 6)).astype(np.float32)
    pool[7000] = pool[10]  # of equal ones the first
    queries[0] = pool[10]
    numbers, distances = nearest_images(queries, pool, 4)
    dense = np.linalg.norm(queries[:, None].astype(float) - pool[None], axis=2)
    assert np.array_equal(numbers, np.argsort(dense, 1, kind="stable")[:, :4])
    assert numbers[0, :2].tolist() == [10, 7000] and np.allclose(distances, np.sort(dense, 1)[:, :4], atol=1e-6)


def test_the_nearest_training_images_stand_beside_samples(
    shot: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "n.png"
    command = ["sample", str(shot), "--seeds", "0-1", "--nearest", str(data_file), "--neighbours", "2", "--zoom", "1"]
    assert main([*command, "--out", str(out)]) == 0
    assert "6 samples, each with 2 of 18 training images" in capsys.readouterr().out
    picture = torch.from_numpy(np.asarray(Image.open(out)).copy()).permute(2, 0, 1)
    patches = picture.unfold(1, 32, 1).unfold(2, 32, 1)

    def count(image: torch.Tensor) -> int:
        return int((patches == image[:, None, None]).flatten(3).all(3).all(0).sum())

    G = snapshot.read(shot).generator
    assert all(count(image) == 1 for image in draw_images(G, [0, 1] * 3, [0, 0, 1, 1, 2, 2]))


def test_every_command_draws_the_image_that_sample_draws(shot: Path, tmp_path: Path) -> None:
    expected = draw_images(snapshot.read(shot).generator, [7], [1], 0.8)[0]
    common = ["--classes", "class1", "--truncation", "0.8", "--zoom", "1"]
    commands = {
        "sample": ["sample", str(shot), "--seeds", "7"],
        "batch": ["sample", str(shot), "--seeds", "0-63"],
        "labelled": ["sample", str(shot), str(shot), "--seeds", "5-7", "--labels"],
        "interpolate": ["interpolate", str(shot), "--seeds", "3,7,5"],
        "codes": ["codes", str(shot), "--seeds", "7,2", "--segments", "2"],
        "directions": ["directions", str(shot), "--seeds", "7", "--layer", "all", "--directions", "2"],
    }
    for name, command in commands.items():
        out = tmp_path / f"{name}.png"
        assert main([*command, *common, "--out", str(out)]) == 0
        patches = torch.from_numpy(np.asarray(Image.open(out).convert("RGB")).copy()).unfold(0, 32, 1).unfold(1, 32, 1)
        same = (patches == expected).flatten(3).all(3).all(2)
        assert same.any(), name


def test_sampling_says_which_statistics_it_takes(shot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(shot.parent / "x.png")
    assert main(["sample", str(shot), "--seeds", "0", "--truncation", "0.5", "--out", out]) == 0
    assert "has no standing statistics" in capsys.readouterr().err
    running = Path(out).read_bytes()
    before = snapshot.read(shot)
    level = measure_standing_statistics(
        before.generator, z_dim=16, num_classes=3, truncation=0.5, num_images=32, batch_size=16
    )
    snapshot.write(shot, snapshot.Snapshot(generator=before.generator, standing=(level,)))
    assert main(["sample", str(shot), "--seeds", "0", "--truncation", "0.5", "--out", out]) == 0
    assert "standing statistics at truncation 0.5 (32 images)" in capsys.readouterr().err
    assert Path(out).read_bytes() != running
    assert (
        main(["sample", str(shot), "--seeds", "0", "--truncation", "0.5", "--batch-norm", "running", "--out", out]) == 0
    )
    assert Path(out).read_bytes() == running


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "{shot}", "--classes", "clas1"], "did you mean 'class"),
        (["sample", "{shot}", "--seeds", ""], "--seeds has ''; name at least one seed"),
        (["sample", "{shot}", "--truncation", "50"], "truncation is 50.0; it must be in [0.02, 10]"),
        (["sample", "{shot}", "--truncation", "nan"], "truncation is nan"),
        (["sample", "{shot}", "--z-scale", "-1"], "z_scale is -1.0"),
        (["sample", "{newer}"], "snapshot version 9; this hamgan reads versions 1 to"),
        (["sample", "{shot}", "--truncation", "0.5", "--batch-norm", "standing"], "has no standing statistics"),
        (["sample", "{shot}", "{shot}", "--out", "x.gif"], "one snapshot at a time"),
        (["sample", "{shot}", "--nearest", "absent.h5"], "absent.h5"),
        (["interpolate", "{shot}", "--frames", "0"], "frames is 0"),
        (["interpolate", "{shot}", "--out", "x.npz"], "allowed are a .png"),
        (["codes", "{shot}", "--seeds", "0-99"], "a picture holds 1 to 24"),
        (["codes", "{shot}", "--ham", "2"], "--ham is 2; this generator has 0: contexts.1"),
        (["codes", "{shot}", "--segments", "9"], "--segments is 9"),
        (["directions", "{shot}", "--layer", "9"], "--layer is 9; allowed are 0 to 3"),
        (["directions", "{shot}", "--layer", "x"], "--layer is 'x'"),
        (["directions", "{shot}", "--reach", "0"], "--reach is 0.0"),
    ],
)
def test_bad_input_gets_one_line_and_code_2(
    shot: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    newer = shot.with_name("newer.safetensors")
    with safe_open(shot, framework="pt") as file:
        save_file(load_file(shot), newer, dict(file.metadata()) | {"version": "9"})
    assert main([part.format(shot=shot, newer=newer) for part in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("hamgan: error: ") and message in error

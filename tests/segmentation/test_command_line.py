"""Bad input on the command line: one line that names it, exit code 2, nothing written."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from labelled_files import with_folders
from PIL import Image

from hamgan.cli import main
from hamgan.config import dump_toml
from hamgan.segmentation.config import TrainConfig
from hamgan.segmentation.load import public_state_dict
from hamgan.segmentation.model import Segmentor


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command that must be refused; return its one line."""
    assert main(["segmentation", *map(str, words)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line and "img/s" not in line]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def preset(tiny_run: TrainConfig, folders: Path, tmp_path: Path) -> Path:
    """A preset for the pair of folders."""
    config = replace(with_folders(tiny_run, folders), steps=1)
    path = tmp_path / "folders.toml"
    path.write_text(dump_toml(config))
    return path


def test_bad_masks(preset: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = folders / "masks" / "val" / "1.png"
    good = np.array(Image.open(mask))
    command = ("train", preset, "--root", tmp_path / "runs")

    Image.fromarray(np.where(good == 2, 77, good).astype(np.uint8)).save(mask)
    assert f"{mask}: has the unknown label 77; labels are 0..2, 255" in refused(capsys, *command)
    Image.fromarray(good[:-1]).save(mask)
    line = refused(capsys, *command)
    assert f"{mask}: is 32x64, its image" in line and "33x64 (height x width); they must agree" in line
    Image.fromarray(np.zeros((33, 64, 3), np.uint8)).save(mask)
    assert f"{mask}: is a picture in RGB" in refused(capsys, *command)
    mask.write_bytes(b"no picture")
    assert f"{mask}: unreadable mask" in refused(capsys, *command)
    mask.unlink()
    assert f"{mask}: no mask for {folders / 'images' / 'val' / '1.jpg'}" in refused(capsys, *command)


def test_other_networks_and_small_images(
    preset: Path, tiny_run: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wider = Segmentor(replace(tiny_run.model, num_classes=3, channels=64))
    weights = tmp_path / "wider.pth"
    torch.save({"state_dict": public_state_dict(wider)}, weights)
    command = ("train", preset, "--root", tmp_path / "runs", "--weights", weights)
    assert f"{weights}: is of another network" in refused(capsys, *command)
    other = {"state_dict": {name.replace("ham_in", "psp"): tensor for name, tensor in public_state_dict(wider).items()}}
    torch.save(other, weights)
    assert f"{weights}: is neither Light-Ham nor HamNet" in refused(capsys, "predict", weights, tmp_path / "x.png")

    assert main(["segmentation", "train", str(preset), "--root", str(tmp_path / "runs")]) == 0
    capsys.readouterr()
    run = max((tmp_path / "runs").glob("*-folders"))
    small = tmp_path / "small.png"
    Image.fromarray(np.zeros((20, 64, 3), np.uint8)).save(small)
    line = refused(capsys, "predict", run, small, "--out", tmp_path / "out")
    assert f"{small}: images are 20x64; no side may be smaller than the backbone's stride, 32" in line
    assert not (tmp_path / "out").exists()
    assert "absent.png" in refused(capsys, "predict", run, tmp_path / "absent.png", "--out", tmp_path / "out")

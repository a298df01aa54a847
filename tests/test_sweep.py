"""`hamgan sweep`: a level a row, the numbers that `hamgan eval` gives, and no level measured twice."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from hamgan import snapshot
from hamgan.cli import main
from hamgan.models.generator import Generator, GeneratorConfig


@pytest.fixture
def shot(tmp_path: Path, tiny_generator_config: GeneratorConfig) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "s.safetensors"
    G = Generator(tiny_generator_config).eval()
    snapshot.write(path, snapshot.Snapshot(generator=G, class_names=("class0", "class1", "class2")))
    return path


def test_a_sweep_draws_its_curve_and_goes_on(
    shot: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    common = ["--data", str(data_file), "--num-images", "20"]
    command = ["sweep", str(shot), *common, "--out", str(out), "--truncations"]
    assert main([*command, "0.5"]) == 0
    assert "has no standing statistics" in capsys.readouterr().out
    first = (out / "truncation-0.5" / "card.json").stat().st_mtime_ns
    assert main([*command, "0.5,none"]) == 0
    assert (out / "truncation-0.5" / "card.json").stat().st_mtime_ns == first
    rows = list(csv.DictReader((out / "sweep.csv").open()))
    assert [row["truncation"] for row in rows] == ["0.5", "none"] and Image.open(out / "sweep.png").size[0] > 500
    assert not list(out.rglob("partial"))
    card = tmp_path / "card"
    assert main(["eval", str(shot), *common, "--truncation", "0.5", "--out", str(card)]) == 0
    numbers = json.loads((card / "card.json").read_text())["numbers"]
    assert float(rows[0]["distance"]) == numbers["fd20_efficientnet_lite0"]["value"]
    assert float(rows[0]["score"]) == numbers["is20_efficientnet_lite0"]["value"]
    # Another generator's levels are not taken for this one's.
    changed = snapshot.read(shot)
    with torch.no_grad():
        changed.generator.output_conv.weight.add_(0.1)
    snapshot.write(shot, changed)
    assert main([*command, "0.5"]) == 2
    assert "of other images" in capsys.readouterr().err
    shutil.rmtree(out / "truncation-0.5")
    assert (
        main(["sweep", str(shot), *common, "--out", str(out), "--batch-norm", "standing", "--truncations", "0.5"]) == 2
    )
    assert "has no standing statistics" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["{shot}"], "nothing to compare with"), (["{shot}", "--truncations", "x"], "--truncations has 'x'")],
)
def test_bad_input_gets_one_line_and_code_2(
    shot: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["sweep", *[part.format(shot=shot) for part in arguments]]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]

"""The command line as a new user meets it, wrong input included."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hamgan import snapshot
from hamgan.cli import main
from hamgan.models.generator import Generator, GeneratorConfig


@pytest.fixture
def shot(tmp_path: Path, tiny_generator_config: GeneratorConfig) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "snapshot-00000001.safetensors"
    G = Generator(tiny_generator_config).eval()
    snapshot.write(path, snapshot.Snapshot(generator=G, class_names=("cat", "dog", "bird")))
    return path


def test_help_names_every_command() -> None:
    out = subprocess.run([sys.executable, "-m", "hamgan", "--help"], capture_output=True, text=True, check=True).stdout
    assert all(word in out for word in ("train", "sample", "data", "import"))


def test_a_dry_run_prints_configuration_costs_and_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = Path(__file__).parent.parent / "configs" / "emoji32.toml"
    assert main(["train", str(preset), "--dry-run", "--root", str(tmp_path), "--g_optimizer.lr", "3e-4"]) == 0
    out = capsys.readouterr().out
    for part in ("lr = 0.0003", "parameters: G ", "FLOPs per image: ", "memory: about ", "00000-emoji32 (new)"):
        assert part in out
    assert list(tmp_path.iterdir()) == []


def test_sampling_reads_a_run_folder_or_a_snapshot(shot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shot.parent / "grid.png"
    assert main(["sample", str(shot.parent), "--seeds", "0-3", "--classes", "dog,0", "--out", str(out)]) == 0
    first = np.asarray(Image.open(out))
    assert main(["sample", str(shot), "--seeds", "2", "--classes", "dog", "--out", str(out)]) == 0
    assert np.array_equal(np.asarray(Image.open(out)), first[:32, 2 * 34 : 2 * 34 + 32])


def test_importing_writes_a_snapshot_that_sampling_draws_from(tmp_path: Path) -> None:
    weights = Path(__file__).parent / "reference" / "biggan_pytorch_32" / "G.pth"
    out = tmp_path / "imported.safetensors"
    assert main(["import", "biggan-pytorch", str(weights), str(out)]) == 0
    assert main(["sample", str(out), "--seeds", "0-1", "--out", str(tmp_path / "s.png")]) == 0
    import hamgan

    assert hamgan.load(str(out)).config.num_classes == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "no.toml"], "no.toml: no such preset"),
        (["train", "{preset}", "--generator.chanels", "3"], "did you mean 'generator.channels'?"),
        (["train", "{preset}", "--data.path", "absent.h5", "--data.source", ""], "absent.h5: no training file"),
        (["train", "{preset}", "--device", "warp"], "device is 'warp'"),
        (["sample", "{folder}/absent.safetensors"], "absent.safetensors: no such snapshot"),
        (["sample", "{folder}", "--classes", "dgo"], "did you mean 'dog'?"),
        (["sample", "{folder}", "--seeds", "x"], "--seeds has 'x'"),
        (["sample", "{folder}", "--truncation", "0"], "truncation is 0.0"),
        (["sample", "{folder}", "--out", "/dev/null/x.png"], "/dev/null"),
        (["import", "biggan-pytorch", "{folder}/absent.pth", "x.safetensors"], "absent.pth: no such file"),
        (["import", "tf-hamgan", "{folder}/absent", "x.safetensors"], "absent.index is missing"),
        (["data", "build", "{folder}/absent", "{folder}/x.h5", "--resolution", "32"], "absent"),
        (["data", "build", "{folder}/empty", "{folder}/x.h5", "--resolution", "32"], "empty"),
        (["data", "info", "{folder}/absent.h5"], "absent.h5"),
    ],
)
def test_bad_input_gets_one_line_and_code_2(
    shot: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    preset = Path(__file__).parent.parent / "configs" / "emoji32.toml"
    (shot.parent / "empty").mkdir()
    before = shot.read_bytes()
    assert main([part.format(preset=preset, folder=shot.parent) for part in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("hamgan: error: ") and message in error
    assert shot.read_bytes() == before


def test_data_commands_end_to_end(data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = data_file.parent / "source"
    parts = [str(tmp_path / f"part{i}.h5") for i in (1, 2)]
    for i, part in enumerate(parts, 1):
        assert main(["data", "build", str(source), part, "--resolution", "32", "--shard", f"{i}/2"]) == 0
    joined = tmp_path / "joined.h5"
    assert main(["data", "merge", *parts, "--out", str(joined), "--copy"]) == 0
    assert main(["data", "verify", str(joined)]) == 0
    capsys.readouterr()
    assert main(["data", "info", str(joined)]) == 0
    assert "class2" in capsys.readouterr().out
    sheet = tmp_path / "sheet.png"
    assert main(["data", "show", str(joined), str(sheet)]) == 0 and Image.open(sheet).size[0] > 100
    damaged = bytearray(joined.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    joined.write_bytes(damaged)
    assert main(["data", "verify", str(joined)]) == 2
    assert "block 0" in capsys.readouterr().err

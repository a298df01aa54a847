"""Model cards: written with snapshots, from what lies beside them; never a reason to fail."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from hamgan import model_card, snapshot
from hamgan.cli import main
from hamgan.data.hdf5 import TrainingFile
from hamgan.models.generator import Generator, GeneratorConfig


@pytest.fixture
def run(tmp_path: Path, data_file: Path, tiny_generator_config: GeneratorConfig) -> Path:
    """A run folder with a snapshot, as training leaves one."""
    data = tmp_path / "mine.h5"
    shutil.copy(data_file, data)
    folder = tmp_path / "00000-tiny"
    folder.mkdir()
    (folder / "config.toml").write_text(
        f'duration = "9 steps"\nbatch_size = 4\n[data]\npath = "{data}"\n[objective]\nloss = "hinge"\n'
    )
    rows = [{"step": 3, "kd9_x": 0.5}, {"step": 6, "kd9_x": 0.25}, {"step": 9, "kd9_x": 0.125}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 1')
    torch.manual_seed(0)
    provenance = {"run": folder.name, "step": 7, "nimg": 1234, "data": TrainingFile(data).fingerprint}
    shot = snapshot.Snapshot(
        generator=Generator(tiny_generator_config).eval(), class_names=("cat", "dog", "bird"), provenance=provenance
    )
    model_card.write_snapshot(folder / "snapshot-00000007.safetensors", shot)
    return folder


def card_of(run: Path) -> str:
    return (run / "snapshot-00000007.md").read_text("utf-8")


def test_it_says_what_was_trained_on_what_and_how_to_sample(run: Path) -> None:
    card = card_of(run)
    num = sum(p.numel() for p in snapshot.read(run / "snapshot-00000007.safetensors").generator.parameters())
    for part in (
        "# 00000-tiny, step 7",
        "32x32 images in 3 classes, with Hamburger blocks (NMF, V1, rank 4, 6 steps) at 16x16",
        f"{num:,} parameters",
        "Classes: cat, dog, bird.",
        "hamgan sample snapshot-00000007.safetensors --seeds 0-63 --classes dog",
        'hamgan.load("snapshot-00000007.safetensors")',
        "| images | 18 of 32x32 in 3 classes |",
        "not recorded; state it in `mine.licence.txt`",
        "| real images shown to D | 1,234 |",
        "| loss | hinge |",
        "| `kd9_x` | 0.25 | by the run itself, at step 6 |",  # of its step or before, not the latest
        'duration = "9 steps"',
    ):
        assert part in card


def test_the_commands_on_it_work(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    card = card_of(run)
    command = next(line for line in card.splitlines() if line.startswith("hamgan sample")).split()
    assert main(command[1:]) == 0 and (run / "grid.png").is_file()
    namespace: dict[str, torch.Tensor] = {}
    exec(card.split("```python\n")[1].split("```")[0], namespace)
    assert namespace["images"].shape == (2, 3, 32, 32)


def test_a_licence_and_later_evaluations_get_onto_it(run: Path) -> None:
    (run.parent / "mine.licence.txt").write_text("CC BY 4.0,\nby me\n")
    folder = run / "eval-snapshot-00000007-embedded"
    folder.mkdir()
    number = {"value": 94.88, "uncertainty": 0.86}
    how = {"truncation": 0.5, "batch norm": "standing statistics at truncation 0.5 (64 images)"}
    (folder / "card.json").write_text(json.dumps({"numbers": {"fd20_x": number}, "depends_on": {"provenance": how}}))
    broken = run / "eval-snapshot-00000007-other"
    broken.mkdir()
    (broken / "card.json").write_text("{}")
    assert main(["card", str(run)]) == 0
    card = card_of(run)
    assert "| licence | CC BY 4.0, by me |" in card
    assert "| `fd20_x` | 94.88 +- 0.86 | truncation 0.5, batch norm with standing statistics at truncation 0.5" in card


def test_away_from_its_run_or_data_it_says_less(run: Path, tmp_path: Path, data_file: Path) -> None:
    alone = tmp_path / "elsewhere" / "copied.safetensors"
    alone.parent.mkdir()
    shutil.copy(run / "snapshot-00000007.safetensors", alone)
    card = model_card.write(alone).read_text("utf-8")
    assert "None yet" in card and "[generator.ham]" in card and "kd9_x" not in card
    (tmp_path / "mine.h5").unlink()
    assert main(["card", str(run)]) == 0
    assert "not at hand when this card was written" in card_of(run)
    (run / "config.toml").write_text("= broken")
    assert main(["card", str(run)]) == 0 and "None yet" not in card_of(run)


def test_an_imported_snapshot_has_one_too(tmp_path: Path) -> None:
    weights = Path(__file__).parent / "reference" / "biggan_pytorch_32" / "G.pth"
    assert main(["import", "biggan-pytorch", str(weights), str(tmp_path / "i.safetensors")]) == 0
    card = (tmp_path / "i.md").read_text("utf-8")
    assert "| imported from | `G.pth` |" in card and "no global context" in card


def test_well_known_sources_have_their_licence(tmp_path: Path) -> None:
    assert model_card._licence(tmp_path / "x.h5", "fluent-emoji-128.zip").startswith("MIT")
    assert "non-commercial" in model_card._licence(tmp_path / "x.h5", "ILSVRC2012_img_train.tar")

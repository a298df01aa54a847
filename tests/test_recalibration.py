"""`hamgan recalibrate`: levels are kept in the snapshot, a killed call goes on, and nothing else changes."""

from pathlib import Path

import pytest
import torch

import hamgan
from hamgan import recalibration, snapshot
from hamgan.cli import main
from hamgan.models.generator import Generator, GeneratorConfig
from hamgan.sampling.standing import StandingStatistics


@pytest.fixture
def shot(tmp_path: Path, tiny_generator_config: GeneratorConfig) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "snapshot-00000001.safetensors"
    snapshot.write(path, snapshot.Snapshot(generator=Generator(tiny_generator_config).eval()))
    return path


def recalibrated(path: Path, truncations: str, *options: str) -> tuple[StandingStatistics, ...]:
    sizes = ["--num-images", "30", "--batch-size", "16"]
    assert main(["recalibrate", str(path), "--truncations", truncations, *sizes, *options]) == 0
    return snapshot.read(path).standing


def test_levels_are_measured_once_and_added_to(shot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot.read(shot).generator.state_dict()
    assert [level.truncation for level in recalibrated(shot, "0.4..0.5")] == [0.4, 0.5]
    measured = []
    real = recalibration.measure_standing_statistics

    def spy(*args: object, **options: object) -> StandingStatistics:
        measured.append(options["truncation"])
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(recalibration, "measure_standing_statistics", spy)
    levels = recalibrated(shot, "0.5,none,0.3")
    assert [level.truncation for level in levels] == [0.3, 0.4, 0.5, None] and measured == [None, 0.3]
    assert all(level.num_images == 32 for level in levels)  # whole batches
    after = snapshot.read(shot).generator.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    # Measured from more images, a level is replaced.
    assert main(["recalibrate", str(shot), "--truncations", "0.4", "--num-images", "48", "--batch-size", "16"]) == 0
    assert [level.num_images for level in snapshot.read(shot).standing] == [32, 48, 32, 32]


def test_a_killed_call_keeps_the_levels_that_are_done(shot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = recalibration.measure_standing_statistics

    def killed(*args: object, **options: object) -> StandingStatistics:
        if options["truncation"] == 0.6:
            raise KeyboardInterrupt
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(recalibration, "measure_standing_statistics", killed)
    assert main(["recalibrate", str(shot), "--truncations", "0.5,0.6,0.7", "--num-images", "16"]) == 130
    assert [level.truncation for level in snapshot.read(shot).standing] == [0.5]


def test_another_file_may_take_them(shot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original, other = shot.read_bytes(), tmp_path / "deep" / "other.safetensors"
    assert recalibrated(shot, "0.5", "--out", str(other)) == () and shot.read_bytes() == original
    recalibrated(shot, "0.6", "--out", str(other))
    assert [level.truncation for level in snapshot.read(other).standing] == [0.5, 0.6]
    changed = snapshot.read(shot)
    with torch.no_grad():
        changed.generator.output_conv.weight.add_(1)
    snapshot.write(shot, changed)
    assert main(["recalibrate", str(shot), "--out", str(other)]) == 2
    assert "holds another generator" in capsys.readouterr().err


def test_load_takes_the_level_of_its_truncation_and_draw_draws_it(shot: Path) -> None:
    (level,) = recalibrated(shot, "0.5")
    name = next(iter(level.tensors))
    G = hamgan.load(str(shot), truncation=0.5)
    assert torch.equal(G.state_dict()[name], level.tensors[name])
    images = hamgan.draw(G, [3, 4], [0, 1], truncation=0.5)
    assert images.shape == (2, 3, 32, 32) and not torch.equal(
        images, hamgan.draw(hamgan.load(str(shot)), [3, 4], [0, 1])
    )
    with pytest.warns(UserWarning, match="has standing statistics for 0.5 only"):
        hamgan.load(str(shot), truncation=0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{shot}", "--truncations", "0.001"], "truncation is 0.001"),
        (["{shot}", "--truncations", "half"], "--truncations has 'half'"),
        (["{shot}", "--num-images", "1"], "num_images is 1"),
        (["{shot}", "--batch-size", "0"], "batch_size is 0"),
        (["{shot}x"], "no such snapshot"),
    ],
)
def test_bad_input_gets_one_line_and_code_2(
    shot: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = shot.read_bytes()
    assert main(["recalibrate", *[part.format(shot=shot) for part in arguments]]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1] and shot.read_bytes() == before

"""Snapshots with standing statistics: kept, chosen by truncation, readable by version, refused when damaged."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hamgan import snapshot
from hamgan.models.generator import Generator, GeneratorConfig
from hamgan.sampling.standing import StandingStatistics, running_names


@pytest.fixture
def shot(tiny_generator_config: GeneratorConfig) -> snapshot.Snapshot:
    torch.manual_seed(0)
    G = Generator(tiny_generator_config).eval()
    state = G.state_dict()
    levels = [
        StandingStatistics(
            truncation=value,
            num_images=64,
            batch_size=16,
            tensors={name: torch.rand_like(state[name]) + 0.1 for name in running_names(G)},
        )
        for value in (0.5, 1.0)
    ]
    return snapshot.Snapshot(generator=G, standing=tuple(levels))


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_standing_statistics_come_back_and_make_version_2(shot: snapshot.Snapshot, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    snapshot.write(path, shot)
    back = snapshot.read(path)
    assert metadata_of(path)["version"] == "2" and len(back.standing) == 2
    for ours, theirs in zip(back.standing, shot.standing, strict=True):
        assert (ours.truncation, ours.num_images, ours.batch_size) == (theirs.truncation, 64, 16)
        assert all(torch.equal(ours.tensors[name], tensor) for name, tensor in theirs.tensors.items())
    snapshot.write(path, snapshot.Snapshot(generator=shot.generator))
    assert metadata_of(path)["version"] == "1" and snapshot.read(path).standing == ()


def test_the_truncation_chooses_the_statistics(shot: snapshot.Snapshot) -> None:
    running = shot.generator.state_dict()
    name = running_names(shot.generator)[0]

    def statistics(truncation: float | None, mode: snapshot.BatchNormMode = "auto") -> torch.Tensor:
        return shot.at(truncation, mode).generator.state_dict()[name]

    low, high = (level.tensors[name] for level in shot.standing)
    assert torch.equal(statistics(0.5), low) and torch.allclose(statistics(0.75), (low + high) / 2)
    assert torch.equal(statistics(None), running[name]) and torch.equal(statistics(0.5, "running"), running[name])
    assert shot.at(0.5).batch_norm == "standing statistics at truncation 0.5 (64 images)" and not shot.at(0.5).warning
    outside = shot.at(0.3)
    assert torch.equal(outside.generator.state_dict()[name], running[name])
    assert "0.5, 1 only" in outside.warning and "recalibrate" in outside.warning
    for truncation in (0.3, None):
        with pytest.raises(ValueError, match=r"has standing statistics for 0\.5, 1 only"):
            shot.at(truncation, "standing")
    with pytest.raises(ValueError, match=r"truncation is 0\.001"):
        shot.at(0.001)


def test_a_newer_version_gets_one_clear_line(shot: snapshot.Snapshot, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    snapshot.write(path, shot)
    save_file(load_file(path), path, metadata_of(path) | {"version": "3"})
    with pytest.raises(ValueError, match="snapshot version 3; this hamgan reads versions 1 to 2"):
        snapshot.read(path)


@pytest.mark.parametrize("damage", ["missing", "strange", "nan", "negative", "shape", "truncation", "list"])
def test_damaged_standing_statistics_are_refused(shot: snapshot.Snapshot, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "s.safetensors"
    snapshot.write(path, shot)
    tensors, metadata = load_file(path), metadata_of(path)
    mean, var = (f"standing_stats/1/{name}" for name in running_names(shot.generator)[:2])
    levels = json.loads(metadata["standing_stats"])
    if damage == "missing":
        del tensors[mean]
    elif damage == "strange":
        tensors["standing_stats/7/x"] = torch.zeros(1)
    elif damage == "nan":
        tensors[mean][0] = float("nan")
    elif damage == "negative":
        tensors[var][0] = -1.0
    elif damage == "shape":
        tensors[mean] = tensors[mean][1:].clone()
    elif damage == "truncation":
        levels[0]["truncation"] = "half"
    else:
        levels = 3
    save_file(tensors, path, metadata | {"standing_stats": json.dumps(levels)})
    with pytest.raises(ValueError, match="its standing statistics are damaged"):
        snapshot.read(path)

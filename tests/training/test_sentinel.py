"""The sentinel's rules, rollbacks, and saves under faults."""

import errno
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hamgan import checkpoint
from hamgan.background import BackgroundWriter
from hamgan.data.hdf5 import TrainingFile
from hamgan.data.subset import hold_out
from hamgan.models.discriminator import Discriminator, DiscriminatorConfig
from hamgan.models.generator import GeneratorConfig
from hamgan.nn.decomposition import NMF
from hamgan.nn.spectral_norm import SNConv2d
from hamgan.run_folder import prune
from hamgan.training import observer
from hamgan.training.config import DataConfig, LogConfig, OptimizerConfig, SentinelConfig, TrainConfig
from hamgan.training.health import compare, count_nonfinite, decomposition_statistics
from hamgan.training.loop import train
from hamgan.training.sentinel import SentinelState, judge
from hamgan.training.stream import reseeded

CONFIG = SentinelConfig(patience=2)
GOOD = {
    "diversity_ratio": 0.8,
    "d_feature_spread": 0.5,
    "G/sigma_max": 2.0,
    "D/sigma_max": 2.0,
    "g_grad_norm": 1.0,
    "d_grad_norm": 3.0,
    "nonfinite": 0.0,
}


def seen(*rows: dict[str, float], in_grace: bool = False) -> tuple[SentinelState, list[str]]:
    state = SentinelState()
    kinds = [judge(state, CONFIG, step + 1, GOOD | row, in_grace=in_grace).kind for step, row in enumerate(rows)]
    return state, kinds


def test_a_slow_rise_is_healthy_and_a_jump_is_not() -> None:
    slow = [{"G/sigma_max": 2.0 * 1.2**step, "g_grad_norm": 2.0**step} for step in range(20)]
    state, kinds = seen(*slow)
    assert set(kinds) == {"healthy"} and state.healthy_step == 20
    state, kinds = seen({}, {}, {"G/sigma_max": 4.1}, {"G/sigma_max": 5.0})
    assert kinds == ["healthy", "healthy", "suspicious", "collapsed"] and state.healthy_step == 2
    state, kinds = seen({}, {}, {"d_grad_norm": 91.0}, {}, {"d_grad_norm": 91.0})
    assert kinds == ["healthy", "healthy", "suspicious", "healthy", "suspicious"] and state.healthy_step == 4


def test_lost_and_missing_diversity() -> None:
    assert seen({"diversity_ratio": 0.1}, {"diversity_ratio": 0.1})[1] == ["suspicious", "collapsed"]
    assert seen({"diversity_ratio": 0.1}, {"diversity_ratio": 0.1}, in_grace=True)[1] == ["healthy"] * 2
    state, kinds = seen({}, {"diversity_ratio": 0.41}, {"diversity_ratio": 0.39})
    assert kinds == ["healthy", "healthy", "suspicious"] and state.best_diversity == 0.8


def test_a_dead_discriminator_is_noticed_even_in_grace() -> None:
    state, kinds = seen({}, {"d_feature_spread": 0.0}, {"d_feature_spread": 5e-4}, in_grace=True)
    assert kinds == ["healthy", "suspicious", "collapsed"] and state.healthy_step == 1
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, 32, 32), generator=generator, dtype=torch.uint8)
    shown = images, torch.arange(8) % 2
    torch.manual_seed(0)
    D = Discriminator(DiscriminatorConfig(resolution=32, num_classes=2, channels=4, context_resolutions=(16,))).eval()
    assert compare(D, torch.device("cpu"), shown, shown, None)["d_feature_spread"] > 10 * CONFIG.min_feature_spread
    with torch.no_grad():  # its last block puts out less than nothing, whatever it sees
        for layer in D.blocks[-1].modules():
            if isinstance(layer, SNConv2d):
                layer.bias.fill_(-1e4)
    row = compare(D, torch.device("cpu"), shown, shown, None)
    assert row["d_feature_spread"] == 0 and row["feature_diversity_ratio"] == 0


def test_what_is_not_finite_is_acted_upon_at_once() -> None:
    assert seen({"nonfinite": 3.0})[1] == ["ruined"]
    assert seen({"g_grad_norm": float("nan")})[1] == ["ruined"]
    network = torch.nn.Linear(3, 2)
    assert count_nonfinite(network) == 0
    with torch.no_grad():
        network.weight[0, :2] = torch.tensor([float("inf"), float("nan")])
    assert count_nonfinite(network) == 2


def test_ham_statistics_of_a_known_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 20, 1, generator=generator) @ torch.rand(2, 1, 30, generator=generator)
    ham = NMF(20, 6, eval_steps=50).eval()
    row = decomposition_statistics(ham, x)
    assert row["reconstruction_error"] < 1e-3 and row["effective_rank"] == pytest.approx(1.0, abs=0.05)
    bases, coef = ham.decompose(x)
    singular = torch.linalg.svdvals((bases @ coef.transpose(1, 2)).double())
    share = singular / singular.sum(1, keepdim=True)
    assert row["effective_rank"] == pytest.approx(float(torch.special.entr(share).sum(1).exp().mean()), rel=1e-3)
    with torch.no_grad():
        ham.bases[:, :, 0] = 0
    assert decomposition_statistics(ham, x)["dead_bases"] >= 1 / 6 - 1e-6


def test_pruning_keeps_the_newest_and_the_healthy(tmp_path: Path) -> None:
    paths = [tmp_path / f"checkpoint-{step:08d}.pt" for step in range(1, 9)]
    for path in paths:
        path.touch()
    prune(paths, paths[6], 2, healthy_step=3, keep_healthy=2)
    assert sorted(tmp_path.iterdir()) == [paths[1], paths[2], paths[5], paths[6]]


def test_held_out_images_are_never_shown(data_file: Path) -> None:
    file = TrainingFile(data_file)
    shown, held = hold_out(file, 9, seed=0)
    assert len(np.intersect1d(shown.indices, held.indices)) == 0 and shown.num_images + held.num_images == 18
    assert (np.bincount(shown.labels, minlength=3) == 3).all()
    assert np.array_equal(held.read([2, 0]), file.read(held.indices[[2, 0]]))
    with pytest.raises(ValueError, match=r"data\.hold_out is 10; .* can spare 9 images"):
        hold_out(file, 10, seed=0)


def test_a_failed_background_write_is_raised_once() -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = BackgroundWriter()
    writer.submit(fail)
    with pytest.raises(OSError, match="No space"):
        writer.wait()
    writer.wait()


@pytest.fixture
def config(
    data_file: Path, tiny_generator_config: GeneratorConfig, tiny_discriminator_config: DiscriminatorConfig
) -> TrainConfig:
    every = {
        "stats_every": "1 step",
        "health_every": "2 steps",
        "checkpoint_every": "2 steps",
        "grid_every": "50 steps",
    }
    return TrainConfig(
        duration="8 steps",
        batch_size=8,
        device="cpu",
        precision="fp32",
        data=DataConfig(path=str(data_file), hold_out=4),
        generator=tiny_generator_config,
        discriminator=tiny_discriminator_config,
        g_optimizer=OptimizerConfig(lr=1e-4),
        log=LogConfig(**every, grid_columns=2),
        sentinel=SentinelConfig(grace="1 step", patience=1, lr_factor=0.25),
    )


def events(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def test_a_collapse_is_rolled_back_and_a_kill_keeps_it(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = observer.Observer.health_row

    def collapsing(self: observer.Observer) -> dict[str, float]:
        lost = self.run.step == 6 and not self.run.sentinel.rollbacks
        return measured(self) | {"diversity_ratio": 0.01 if lost else 0.9, "G/sigma_max": 1.0, "D/sigma_max": 1.0}

    monkeypatch.setattr(observer.Observer, "health_row", collapsing)
    run = train(config, preset="p", root=tmp_path)
    (rollback,) = (event for event in events(run) if event["event"] == "rollback")
    assert rollback["step"] == 4 and "rolled back from step 6" in str(rollback["reason"])
    end = checkpoint.load(run / "checkpoint-00000008.pt")
    assert end["sentinel"]["rollbacks"] == 1 and end["g_optimizer"]["param_groups"][0]["lr"] == 0.25e-4
    steps = [json.loads(line)["step"] for line in (run / "stats.jsonl").read_text().splitlines() if "d_loss" in line]
    assert steps == list(range(1, 9))
    # Killed after the rollback, the run goes on with the rollback counted, to the same end.
    for path in (run / "checkpoint-00000008.pt", run / "checkpoint-00000006.pt"):
        path.unlink(missing_ok=True)
    assert checkpoint.load(run / "checkpoint-00000004.pt")["sentinel"]["rollbacks"] == 1
    train(config, preset="p", root=tmp_path)
    again = checkpoint.load(run / "checkpoint-00000008.pt")
    assert all(torch.equal(again["G"][name], tensor) for name, tensor in end["G"].items())
    assert reseeded(3, 0) == 3 != reseeded(3, 1)


def test_a_healthy_run_hears_nothing_of_the_sentinel(config: TrainConfig, tmp_path: Path) -> None:
    run = train(replace(config, sentinel=SentinelConfig()), preset="p", root=tmp_path)
    assert {event["event"] for event in events(run)} == {"start", "saved", "finish"}
    rows = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    (row, *_) = (row for row in rows if "diversity_ratio" in row)
    assert {
        "feature_diversity_ratio",
        "d_feature_spread",
        "d_accuracy_held_out",
        "d_gap_held_out",
        "G/sigma_max",
        "nonfinite",
    } <= row.keys()
    assert any(key.endswith("/dead_bases") for key in row) and any(key.endswith("/effective_rank") for key in row)


def test_a_full_disk_loses_nothing_and_training_goes_on(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = checkpoint.save

    def full_at_4(path: Path, state: dict[str, object]) -> None:
        if path.name == "checkpoint-00000004.pt":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(path, state)

    monkeypatch.setattr(checkpoint, "save", full_at_4)
    run = train(config, preset="p", root=tmp_path)
    assert "could not save" in capsys.readouterr().err
    (failed,) = (event for event in events(run) if event["event"] == "save_failed")
    assert "No space left on device" in str(failed["reason"])
    assert [p.name for p in sorted(run.glob("checkpoint-*.pt"))][-1] == "checkpoint-00000008.pt"
    monkeypatch.setattr(
        checkpoint, "save", lambda path, state: full_at_4(path.with_name("checkpoint-00000004.pt"), state)
    )
    with pytest.raises(OSError, match="No space"):  # the last save of a run must not fail quietly
        train(replace(config, duration="9 steps"), preset="p", run_dir=run)
    checkpoint.verify(run / "checkpoint-00000008.pt")


@pytest.mark.slow
def test_a_run_driven_into_collapse_is_rolled_back_and_a_healthy_one_left_alone(tmp_path: Path) -> None:
    """On the emoji, without spectral norm and with a large learning rate; see docs/training.md for the run at length."""
    from hamgan.training.config import load_config

    often = {"health_every": "20 steps", "checkpoint_every": "20 steps", "stats_every": "10 steps"}
    small = {
        "data.path": tmp_path / "emoji.h5",
        "duration": "100 steps",
        "batch_size": 16,
        "generator.channels": 8,
        "discriminator.channels": 8,
        "eval.extractor": "",
        "sentinel.grace": "20 steps",
        **{f"log.{key}": value for key, value in often.items()},
    }
    driven = {f"{net}.spectral_norm.mode": "none" for net in ("generator", "discriminator")}
    driven |= {f"{net}_optimizer.lr": 0.3 for net in ("g", "d")}  # type: ignore[dict-item]
    preset = Path(__file__).parents[2] / "configs" / "emoji32.toml"
    kinds = {}
    for name, values in {"healthy": small, "driven": small | driven}.items():
        config = load_config(preset, [f"--{key}={value}" for key, value in values.items()])
        with suppress(ValueError):  # what is driven so hard may collapse again after its last rollback
            train(config, preset=name, run_dir=tmp_path / name)
        kinds[name] = {str(event["event"]) for event in events(tmp_path / name)}
    assert kinds["healthy"] == {"start", "saved", "finish"}
    assert {"warning", "rollback"} <= kinds["driven"]
    (rollback, *_) = (event for event in events(tmp_path / "driven") if event["event"] == "rollback")
    assert "learning rates times 0.5" in str(rollback["reason"])

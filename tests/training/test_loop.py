"""A run in this process: exact resume, damaged and foreign files, and everything that does not fit."""

import json
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compare_runs import assert_same, losses
from PIL import Image

from hamgan import checkpoint, snapshot
from hamgan.data.build import build
from hamgan.nn import kernel_library
from hamgan.training.config import DataConfig, QuickEvalConfig, TrainConfig
from hamgan.training.loop import train
from hamgan.training.run_folder import GanRunFolder


def test_a_resumed_run_is_the_undisturbed_one_to_the_last_bit(config: TrainConfig, tmp_path: Path) -> None:
    whole = train(config, preset="whole", root=tmp_path)
    again = train(config, preset="again", root=tmp_path)
    (again / "checkpoint-00000006.pt").unlink()  # as if killed after step 3's checkpoint, with later rows logged
    resumed = train(config, preset="again", root=tmp_path)
    assert resumed == again == tmp_path / "00001-again"
    expected, got = (checkpoint.load(run / "checkpoint-00000006.pt") for run in (whole, resumed))
    assert expected["step"] == 6 and expected["nimg"] == 96
    assert_same(expected, got)
    assert losses(whole) == losses(resumed) and [row[0] for row in losses(resumed)] == [1, 2, 3, 4, 5, 6]
    grids = [(run / "samples" / "00000006.png").read_bytes() for run in (whole, resumed)]
    assert grids[0] == grids[1]
    assert (whole / "samples" / "real.png").is_file()
    environment = json.loads((whole / "environment.json").read_text())
    assert environment["kernels"] == kernel_library.instructions() and environment["torch"] == torch.__version__


def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_is_touched(
    config: TrainConfig, data_file: Path
) -> None:
    from hamgan.data.hdf5 import TrainingFile
    from hamgan.training.run import build_run, restore, state_of

    run = build_run(config, torch.device("cpu"), TrainingFile(data_file))
    for player in (run.G, run.D):
        for weight in player.network.parameters():
            weight.grad = torch.ones_like(weight)
        player.optimizer.step()
    state = checkpoint.to_host(state_of(run))
    moments = state["g_optimizer"]["state"]
    short = {**moments, 0: {**moments[0], "exp_avg": torch.zeros(1)}}  # the fused step would read beyond its end
    name, weight = next(iter(state["D"].items()))
    for key, (value, message) in {
        "g_optimizer": ({"state": short, "param_groups": []}, r"g_optimizer\[0\]\.exp_avg is torch\.float32 \(1,\)"),
        "d_optimizer": ({"state": {0: {}}, "param_groups": []}, r"d_optimizer is not of this network: it has 1 of"),
        "D": ({**state["D"], name: weight[None]}, r"the checkpoint's D\..* this network needs"),
        "G_ema": ({}, r"the checkpoint's G_ema has not the tensors"),
        "step": ("3", r"the checkpoint's step is '3'"),
        "sentinel": ({"healthy_step": "x"}, r"damaged \(TypeError: sentinel\.healthy_step"),
        "config": (None, r"the checkpoint's state is damaged"),
    }.items():
        with pytest.raises(ValueError, match=message):
            restore(run, {**state, key: value})
        assert_same(state, state_of(run))
    restore(run, state)
    assert_same(state, state_of(run))


def test_what_a_kill_leaves_behind_is_tidied_up(config: TrainConfig, tmp_path: Path) -> None:
    whole = train(config, preset="whole", root=tmp_path)
    run = tmp_path / "killed"
    train(config, preset="killed", run_dir=run)
    for path in run.glob("checkpoint-*.pt"):
        path.unlink()  # as if killed before the first checkpoint, with rows logged
    torn = [run / ".checkpoint-00000003.pt.abc.partial", run / "samples" / ".00000003.png.abc.partial"]
    for path in torn:
        path.write_bytes(b"half a fi")
    for name in ("stats.jsonl", "events.jsonl"):
        with (run / name).open("a") as file:
            file.write('{"step": 7, "d_lo')
    train(config, preset="killed", run_dir=run)
    assert not any(path.exists() for path in torn) and not list(run.rglob("*.partial"))
    assert losses(run) == losses(whole)
    *_, before, start = (run / "events.jsonl").read_text().split('{"step": 7, "d_lo\n')
    assert '"event": "finish"' in before and all(json.loads(line) for line in start.splitlines())


def test_a_run_killed_in_its_last_save_still_gets_its_end(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    save = GanRunFolder.save_checkpoint

    def killed_at_6(self: GanRunFolder, step: int, *values: object, **more: object) -> None:
        if step == 6:
            raise Killed
        save(self, step, *values, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(GanRunFolder, "save_checkpoint", killed_at_6)
        train(config, preset="p", root=tmp_path)
    run = tmp_path / "00000-p"
    # All that belongs to the end is there before the checkpoint that says so.
    assert (run / "samples" / "00000006.png").is_file() and (run / "snapshot-00000006.safetensors").is_file()
    assert not (run / "checkpoint-00000006.pt").is_file()
    train(config, preset="p", root=tmp_path)
    assert [row[0] for row in losses(run)] == [1, 2, 3, 4, 5, 6]
    checkpoint.verify(run / "checkpoint-00000006.pt")


@pytest.mark.slow
def test_a_few_faults_of_each_kind_are_survived() -> None:
    script = Path(__file__).parents[2] / "scripts" / "faults.py"
    got = subprocess.run(
        [sys.executable, script, "--kills", "8", "--others", "1", "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert got.returncode == 0, got.stdout + got.stderr
    rows = [row.strip("| ").split(" | ") for row in got.stdout.splitlines() if row.startswith("| ")][1:]
    assert len(rows) == 13
    for name, tried, *survived in rows:
        assert tried.startswith("not tried") or (int(tried) >= 1 and survived == [tried]), name


def test_without_compiled_kernels_a_run_says_what_they_would_bring(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(config, duration="1 steps", anneal=0.0)
    for instructions, wanted in (("none", platform.machine() in ("x86_64", "AMD64")), ("avx2", False)):
        monkeypatch.setattr(kernel_library, "instructions", lambda text=instructions: text)
        train(short, preset=instructions, root=tmp_path)
        assert ("installed with a C compiler" in capsys.readouterr().out) == wanted


def test_a_finished_run_says_so_and_a_longer_one_goes_on(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = replace(config, duration="2 steps", anneal=0.0)
    run = train(short, preset="p", root=tmp_path)
    capsys.readouterr()
    assert train(short, preset="p", root=tmp_path) == run
    assert "finished at step 2" in capsys.readouterr().out
    assert train(replace(short, duration="3 steps"), preset="p", root=tmp_path) == run
    assert "going on from step 2" in capsys.readouterr().out
    assert sorted(path.name for path in run.glob("checkpoint-*")) == [
        "checkpoint-00000002.pt",
        "checkpoint-00000003.pt",
    ]
    assert train(replace(short, seed=1), preset="p", root=tmp_path) == tmp_path / "00001-p"
    shot = snapshot.read(snapshot.find(run))
    assert shot.class_names == ("class0", "class1", "class2") and shot.provenance["step"] == 3


def test_a_run_judges_itself_and_keeps_the_best_snapshot(config: TrainConfig, tmp_path: Path) -> None:
    judged = replace(config, eval=QuickEvalConfig(extractor="efficientnet_lite0", every="2 steps", num_images=8))
    run = train(judged, preset="p", root=tmp_path)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    best = min(rows, key=lambda row: row["kd8_efficientnet_lite0"])
    assert snapshot.read(run / "best.safetensors").provenance["step"] == best["step"]
    assert checkpoint.load(run / "checkpoint-00000006.pt")["best"] == best["kd8_efficientnet_lite0"]
    plain = train(config, preset="plain", root=tmp_path)  # looking does not change what is looked at
    ours, theirs = (checkpoint.load(path / "checkpoint-00000006.pt") for path in (run, plain))
    assert_same(ours["G_ema"], theirs["G_ema"])


def test_a_damaged_newest_checkpoint_is_named_and_passed_over(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(config, preset="p", root=tmp_path)
    newest = run / "checkpoint-00000006.pt"
    whole = newest.read_bytes()
    newest.write_bytes(whole[: len(whole) // 2])
    train(replace(config, log=replace(config.log, keep_checkpoints=1)), preset="p", root=tmp_path)
    captured = capsys.readouterr()
    # The newest one, and the one from before the last healthy check, whatever its age.
    assert sorted(path.name for path in run.glob("checkpoint-*.pt")) == ["checkpoint-00000003.pt", newest.name]
    assert "checkpoint-00000006.pt: truncated" in captured.err and "going on from step 3" in captured.out
    checkpoint.verify(newest)
    for path in run.glob("checkpoint-*.pt"):
        path.write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match="every checkpoint is damaged"):
        train(config, preset="p", root=tmp_path)
    assert all(path.read_bytes() == b"x" * 1000 for path in run.glob("checkpoint-*.pt"))


def test_what_does_not_fit_is_named_and_nothing_is_lost(config: TrainConfig, data_file: Path, tmp_path: Path) -> None:
    run = train(replace(config, duration="1 step"), preset="p", root=tmp_path)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}

    def refused(config: TrainConfig, message: str, run_dir: Path = run) -> None:
        with pytest.raises((ValueError, OSError), match=message):
            train(config, preset="p", run_dir=run_dir)

    refused(replace(config, seed=7), r"another configuration: seed: 0 -> 7")
    refused(replace(config, data=DataConfig(path=str(tmp_path / "no.h5"))), r"no\.h5: no training file; build it with")
    two = {"num_classes": 2}
    small = replace(
        config, generator=replace(config.generator, **two), discriminator=replace(config.discriminator, **two)
    )
    refused(small, r"has 3 classes; generator\.num_classes is 2")
    (tmp_path / "file").write_text("")
    refused(config, r"file/run: the run folder cannot be written", run_dir=tmp_path / "file" / "run")
    lock = GanRunFolder(run, config)
    refused(config, "another process is training")
    lock.close()
    after = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    same = {name for name in before if name.endswith((".pt", ".safetensors", ".jsonl"))}
    assert all(after[name] == before[name] for name in same)


def test_divergence_stops_with_a_line(config: TrainConfig, tmp_path: Path) -> None:
    hot = replace(config, g_optimizer=replace(config.g_optimizer, lr=1e30), precision="fp32")
    with pytest.raises(ValueError, match="collapsed at step 2 after 3 rollbacks: d_loss is nan"):
        train(hot, preset="rolled", root=tmp_path)
    hot = replace(hot, sentinel=replace(hot.sentinel, action="warn"))  # a ruined run stops all the same
    with pytest.raises(ValueError, match="training diverged at step"):
        train(hot, preset="p", root=tmp_path)
    # Nothing ruined is saved, however seldom statistics are written.
    late = replace(hot, seed=1, log=replace(hot.log, stats_every="100 steps", checkpoint_every="1 step"))
    with pytest.raises(ValueError, match="training diverged at step"):
        train(late, preset="late", root=tmp_path)
    assert all(
        tensor.isfinite().all()
        for path in (tmp_path / "00001-late").glob("checkpoint-*.pt")
        for tensor in checkpoint.load(path)["G"].values()
    )


def test_other_images_under_the_same_name_are_refused(config: TrainConfig, tmp_path: Path) -> None:
    source = tmp_path / "source" / "class0"
    source.mkdir(parents=True)
    for index in range(4):
        Image.new("RGB", (32, 32), (index, 0, 0)).save(source / f"{index}.png")
    build(source.parent, tmp_path / "other.h5", resolution=32, resize="none", workers=1)
    short = replace(config, duration="1 step")
    run = train(short, preset="p", root=tmp_path)
    other = replace(short, duration="2 steps", data=DataConfig(path=str(tmp_path / "other.h5")))
    with pytest.raises(ValueError, match="other images than this run began with"):
        train(other, preset="p", run_dir=run)

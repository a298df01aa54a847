"""A run: exact resume, signals, damaged and foreign files, and everything that does not fit."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from hamgan import checkpoint, snapshot
from hamgan.data.build import build
from hamgan.models.discriminator import DiscriminatorConfig
from hamgan.models.generator import GeneratorConfig
from hamgan.training.augment import AugmentConfig
from hamgan.training.config import DataConfig, LogConfig, QuickEvalConfig, TrainConfig
from hamgan.training.loop import train
from hamgan.training.run_folder import GanRunFolder


@pytest.fixture
def config(
    data_file: Path, tiny_generator_config: GeneratorConfig, tiny_discriminator_config: DiscriminatorConfig
) -> TrainConfig:
    return TrainConfig(
        duration="6 steps",
        batch_size=8,
        micro_batch=4,
        d_steps=2,
        anneal=0.5,
        precision="bf16",
        device="cpu",
        data=DataConfig(path=str(data_file)),
        generator=tiny_generator_config,
        discriminator=tiny_discriminator_config,
        augment=AugmentConfig(kinds=("color", "translation", "cutout")),
        log=LogConfig(
            stats_every="1 step",
            grid_every="3 steps",
            health_every="3 steps",
            checkpoint_every="3 steps",
            keep_checkpoints=3,
            grid_columns=2,
        ),
    )


def assert_same(a: object, b: object, where: str = "") -> None:
    if isinstance(a, dict):
        assert isinstance(b, dict) and a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where  # type: ignore[arg-type]
    else:
        assert a == b, where


def losses(run: Path) -> list[tuple[int, float, float]]:
    rows = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    return [(row["step"], row["d_loss"], row["g_loss"]) for row in rows if "d_loss" in row]


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
    assert (whole / "samples" / "real.png").is_file() and (whole / "environment.json").is_file()


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


def command(preset: Path, root: Path) -> list[str]:
    return [sys.executable, "-m", "hamgan", "train", str(preset), "--root", str(root)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    config: TrainConfig, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    from hamgan.config import dump_toml

    preset = tmp_path / "long.toml"
    preset.write_text(dump_toml(replace(config, duration="100000 steps")))
    process = subprocess.Popen(
        command(preset, tmp_path / "runs"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    stats = tmp_path / "runs" / "00000-long" / "stats.jsonl"
    deadline = time.monotonic() + 120
    while not stats.is_file():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert "the same command goes on" in out
    saved = sorted((tmp_path / "runs" / "00000-long").glob("checkpoint-*.pt"))
    assert checkpoint.load(saved[-1])["step"] == len({row[0] for row in losses(stats.parent)})


def torchrun(num_processes: int, *arguments: str, **more: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", "hamgan", *arguments],
        env=environment,
        timeout=300,
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_train_as_one(config: TrainConfig, tmp_path: Path) -> None:
    from hamgan.config import dump_toml

    preset = tmp_path / "pair.toml"
    # A large eps of Adam: where a gradient is near 0, Adam would turn its rounding into a whole step of the learning rate.
    even = {name: replace(getattr(config, name), eps=1e-3) for name in ("g_optimizer", "d_optimizer")}
    preset.write_text(
        dump_toml(replace(config, duration="5 steps", precision="fp32", micro_batch=0, anneal=0.0, **even))
    )
    together = torchrun(2, "train", str(preset), "--root", str(tmp_path / "two"))
    assert together.returncode == 0, together.stderr
    alone = subprocess.run(command(preset, tmp_path / "one"), timeout=300, check=False)
    assert alone.returncode == 0
    # Two processes begin, one goes on: the number may change on the way, and the order of the images stays.
    begun = torchrun(2, "train", str(preset), "--root", str(tmp_path / "both"), "--duration", "2 steps")
    assert begun.returncode == 0, begun.stderr
    assert subprocess.run(command(preset, tmp_path / "both"), timeout=300, check=False).returncode == 0
    runs = {name: tmp_path / name / "00000-pair" for name in ("one", "two", "both")}
    states = {name: checkpoint.load(run / "checkpoint-00000005.pt") for name, run in runs.items()}
    one = states.pop("one")
    # The same images, latents, augmentation, ham bases and batch norm: sums are rounded in another order, nothing else.
    for other, state in states.items():
        assert one["nimg"] == state["nimg"] == 80
        for network in ("G", "D", "G_ema"):
            for name, tensor in one[network].items():
                assert torch.allclose(tensor, state[network][name], rtol=1e-4, atol=2e-5), (other, network, name)
        for ours, theirs in zip(losses(runs["one"]), losses(runs[other]), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_run_killed_within_a_step_ends_as_the_undisturbed_one(
    config: TrainConfig, tmp_path: Path, num_processes: int
) -> None:
    from hamgan.config import dump_toml

    preset = tmp_path / "killed.toml"
    log = replace(config.log, checkpoint_every="5 steps", health_every="5 steps", grid_every="20 steps")
    preset.write_text(dump_toml(replace(config, duration="40 steps", micro_batch=2, log=log)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    arguments = [*(launcher if num_processes > 1 else [sys.executable]), "-m", "hamgan", "train", str(preset), "--root"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*arguments, str(tmp_path / "whole")], check=True, timeout=300, **quiet)  # type: ignore[call-overload]
    run = tmp_path / "killed" / "00000-killed"
    process = subprocess.Popen([*arguments, str(tmp_path / "killed")], start_new_session=True, **quiet)  # type: ignore[call-overload]
    deadline = time.monotonic() + 120
    while len(list(run.glob("checkpoint-*.pt"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for left in subprocess.run(
        ["pgrep", "-f", str(tmp_path / "killed")], capture_output=True, text=True
    ).stdout.split():
        os.kill(int(left), signal.SIGKILL)  # workers have sessions of their own
    subprocess.run([*arguments, str(tmp_path / "killed")], check=True, timeout=300, **quiet)  # type: ignore[call-overload]
    whole = tmp_path / "whole" / "00000-killed"
    assert_same(*(checkpoint.load(path / "checkpoint-00000040.pt") for path in (whole, run)))
    assert losses(whole) == losses(run)
    assert (whole / "samples" / "00000040.png").read_bytes() == (run / "samples" / "00000040.png").read_bytes()


@pytest.mark.slow
def test_a_group_restarts_by_itself_when_a_worker_is_killed(config: TrainConfig, tmp_path: Path) -> None:
    from hamgan.config import dump_toml

    preset = tmp_path / "elastic.toml"
    log = replace(config.log, checkpoint_every="5 steps", health_every="5 steps", grid_every="20 steps")
    preset.write_text(dump_toml(replace(config, duration="60 steps", micro_batch=0, log=log)))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "2",
    ]
    command += ["-m", "hamgan", "train", str(preset), "--root", str(tmp_path / "runs")]
    process = subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    run = tmp_path / "runs" / "00000-elastic"
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoint-*.pt")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    assert "going on from step" in out and "finished 60 steps" in out
    assert checkpoint.load(run / "checkpoint-00000060.pt")["step"] == 60


@pytest.mark.slow
def test_what_does_not_fit_is_said_once_by_all_processes_together(config: TrainConfig, tmp_path: Path) -> None:
    from hamgan.config import dump_toml

    preset = tmp_path / "odd.toml"
    preset.write_text(dump_toml(replace(config, batch_size=9, micro_batch=0)))
    got = torchrun(2, "train", str(preset), "--root", str(tmp_path))
    assert got.returncode != 0
    lines = [line for line in got.stderr.splitlines() if "hamgan: error" in line]
    assert len(lines) == 1 and "batch_size is 9; 2 processes do not divide it" in lines[0]
    assert "hamgan/training" not in got.stderr
    preset.write_text(dump_toml(replace(config, micro_batch=0, duration="1 step")))
    assert torchrun(2, "train", str(preset), "--root", str(tmp_path / "r")).returncode == 0
    preset.write_text(dump_toml(replace(config, micro_batch=0, seed=5)))
    got = torchrun(2, "train", str(preset), "--run-dir", str(tmp_path / "r" / "00000-odd"))
    lines = [line for line in got.stderr.splitlines() if "hamgan: error" in line]
    assert len(lines) == 1 and "another configuration: seed: 0 -> 5" in lines[0]


@pytest.mark.slow
def test_a_missing_process_and_a_used_port_are_said_within_30_seconds(config: TrainConfig, tmp_path: Path) -> None:
    import socket

    from hamgan.config import dump_toml

    preset = tmp_path / "lone.toml"
    preset.write_text(dump_toml(config))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment = os.environ | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        got = subprocess.run(
            command(preset, tmp_path),
            env=environment | {"MASTER_PORT": str(port)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert got.returncode == 2 and got.stderr.count("hamgan: error") == 1 and "the port is in use" in got.stderr
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            ports = [port, other.getsockname()[1]]
    began = time.monotonic()
    lonely = [  # each waits for the other one at an address of its own
        subprocess.Popen(
            command(preset, tmp_path),
            env=environment | {"RANK": str(rank), "MASTER_PORT": str(ports[rank])},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for rank, process in enumerate(lonely):
        _, err = process.communicate(timeout=60)
        (line,) = err.splitlines()
        assert process.returncode == 2 and f"rank {rank} of 2 waited 25 s for the other processes" in line
    assert time.monotonic() - began < 45  # with the start of Python and torch

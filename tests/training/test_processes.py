"""Runs as processes of their own: signals, kills, groups under torchrun, and what does not fit there."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compare_runs import assert_same, losses

from hamgan import checkpoint
from hamgan.training.config import TrainConfig


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

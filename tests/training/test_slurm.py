"""The Slurm script, with stand-ins for srun and scontrol: warned it saves and requeues; finished or hopeless it does not."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hamgan import checkpoint
from hamgan.config import dump_toml
from hamgan.models.discriminator import DiscriminatorConfig
from hamgan.models.generator import GeneratorConfig
from hamgan.training.config import DataConfig, LogConfig, TrainConfig

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.slurm"
SRUN = '#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
SCONTROL = '#!/usr/bin/env bash\nif [[ $1 == show ]]; then echo localhost; else echo "$*" >> "$REQUEUED"; fi\n'


def test_the_script_is_sound() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SCRIPT], check=True)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    ours = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "REQUEUED": str(tmp_path / "requeued"),
        "RUN_DIR": str(tmp_path / "run"),
        "PYTHON": sys.executable,
        "PROCESSES_PER_NODE": "2",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_JOB_NUM_NODES": "1",
        "OMP_NUM_THREADS": "1",
    }
    return os.environ | ours


@pytest.mark.slow
def test_a_warned_job_saves_and_requeues_and_goes_on(
    environment: dict[str, str],
    tmp_path: Path,
    data_file: Path,
    tiny_generator_config: GeneratorConfig,
    tiny_discriminator_config: DiscriminatorConfig,
) -> None:
    config = TrainConfig(
        duration="100000 steps",
        batch_size=8,
        device="cpu",
        data=DataConfig(path=str(data_file)),
        generator=tiny_generator_config,
        discriminator=tiny_discriminator_config,
        log=LogConfig(stats_every="1 step", grid_columns=2),
    )
    preset, run, requeued = tmp_path / "job.toml", tmp_path / "run", tmp_path / "requeued"
    preset.write_text(dump_toml(config))
    job = subprocess.Popen(
        [SCRIPT, preset], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while not (run / "stats.jsonl").is_file():
        assert time.monotonic() < deadline and job.poll() is None
        time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    out, _ = job.communicate(timeout=100)
    assert job.returncode == 0 and "back into the queue, for life 1" in out, out
    assert requeued.read_text() == f"requeue {environment['SLURM_JOB_ID']}\n"
    (saved,) = run.glob("checkpoint-*.pt")
    step = checkpoint.load(saved)["step"]
    assert step >= 1

    preset.write_text(dump_toml(replace(config, duration=f"{step + 2} steps")))
    second = environment | {"SLURM_RESTART_COUNT": "1"}
    done = subprocess.run([SCRIPT, preset], env=second, capture_output=True, text=True, timeout=120, check=False)
    assert (
        done.returncode == 0 and f"going on from step {step}" in done.stdout and "train.slurm: finished" in done.stdout
    )
    assert len(requeued.read_text().splitlines()) == 1

    preset.write_text(dump_toml(replace(config, seed=1)))  # of another configuration: it would fail for ever
    failed = subprocess.run([SCRIPT, preset], env=second, capture_output=True, text=True, timeout=120, check=False)
    assert failed.returncode != 0 and "not requeued" in failed.stderr and "another configuration" in failed.stderr
    assert len(requeued.read_text().splitlines()) == 1

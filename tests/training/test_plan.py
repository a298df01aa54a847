"""The planner: what fits, what is proposed, what it warns of; and that its counts are those of a real run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hamgan.cli import main
from hamgan.models.discriminator import DiscriminatorConfig
from hamgan.models.generator import GeneratorConfig
from hamgan.nn import kernel_library
from hamgan.training import plan as planner
from hamgan.training.config import TrainConfig
from hamgan.training.estimate import estimate
from hamgan.training.trial import trial_step

CPU = torch.device("cpu")


@pytest.fixture
def config(tiny_generator_config: GeneratorConfig, tiny_discriminator_config: DiscriminatorConfig) -> TrainConfig:
    return TrainConfig(
        batch_size=64,
        precision="fp32",
        device="cpu",
        generator=tiny_generator_config,
        discriminator=tiny_discriminator_config,
    )


def gigabytes(config: TrainConfig, micro_batch: int) -> float:
    """Return the memory in which just this micro-batch fits."""
    return estimate(config).memory_bytes(micro_batch, bf16=False) / planner.MEMORY_SHARE / 1e9 + 1e-9


def test_counts_are_those_of_a_step_that_is_taken(config: TrainConfig) -> None:
    step = trial_step(replace(config, batch_size=4, d_steps=2), CPU)
    with (
        kernel_library.switched_off(),
        FlopCounterMode(display=False) as counter,
    ):  # which sees torch's operations alone
        step()
    # A CPU sums the fused kernels' taps by a small product, once a forward pass whatever the batch.
    assert counter.get_total_flops() == pytest.approx(4 * estimate(replace(config, d_steps=2)).step_flops, rel=0.005)


def test_what_fits_is_the_largest_divisor_below_the_memory(config: TrainConfig) -> None:
    for micro in (64, 32, 16, 1):
        found = planner.plan(config, memory_gb=gigabytes(config, micro))
        assert (found.fitting, found.norm_batch) == (micro, micro)
    assert planner.plan(config, memory_gb=gigabytes(config, 33)).fitting == 32
    none = planner.plan(config, memory_gb=gigabytes(config, 1) * 0.99)
    assert none.fitting == 0 and "does not fit" in planner.describe(config, none)


def test_a_smaller_configured_micro_batch_is_left_alone(config: TrainConfig) -> None:
    found = planner.plan(replace(config, micro_batch=8), memory_gb=gigabytes(config, 64))
    assert found.fitting == found.micro_batch == 8
    assert "8 a step, as configured" in planner.describe(config, found)


def test_batch_norm_over_replicas_sees_all_processes(config: TrainConfig) -> None:
    memory = gigabytes(config, 8)
    across = planner.plan(config, processes=4, memory_gb=memory)
    local = planner.plan(
        replace(config, generator=replace(config.generator, cross_replica=False)), processes=4, memory_gb=memory
    )
    assert (across.fitting, across.norm_batch, local.norm_batch) == (8, 32, 8)
    assert "warning" not in planner.describe(config, across)
    assert "batch norm sees 8 images at a time" in planner.describe(config, local)
    assert "--micro_batch 8: gradients of 2 micro-batches" in planner.describe(config, across)


def test_a_step_that_would_take_long_is_tried_smaller(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = replace(
        config,
        generator=replace(config.generator, channels=32),
        discriminator=replace(config.discriminator, channels=32),
    )
    monkeypatch.setattr(planner, "matrix_product_rate", lambda *_: 1e6)
    speed = planner.measure_speed(wide, estimate(wide), CPU)
    assert (speed.batch, speed.channels) == (planner.TRIAL_BATCH, planner.TRIAL_CHANNELS)
    assert speed.flops_per_second > 0 and speed.seconds > 0


def test_the_command_prints_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = str(Path(__file__).parents[2] / "configs" / "emoji32.toml")
    assert main(["plan", preset, "--generator.channels", "4", "--discriminator.channels", "4", "--memory", "8"]) == 0
    out = capsys.readouterr().out
    assert "images/s" in out and "micro_batch 32, 1 a step, as configured" in out and "2800 steps in" in out
    assert f"kernels {kernel_library.instructions()}," in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes", "0"], "--processes is 0; it must be at least 1"),
        (["--processes", "5"], "batch_size is 32; 5 processes do not divide it"),
        (["--memory", "-1"], "--memory is -1.0; it must be a number of GB above 0"),
        (["--memory", "nan"], "--memory is nan"),
        (["--generator.chanels", "4"], "generator.chanels"),
    ],
)
def test_bad_arguments_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(Path(__file__).parents[2] / "configs" / "emoji32.toml"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1

"""torch.compile over whole training steps: no graph breaks, and nothing compiled again after the first step."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from hamgan.training.config import TrainConfig, load_config
from hamgan.training.trial import trial_step

CONFIGS = Path(__file__).parents[2] / "configs"


def narrow(preset: str, precision: str) -> TrainConfig:
    words = [f"--{key}=4" for key in ("generator.channels", "discriminator.channels", "batch_size")]
    config = load_config(CONFIGS / preset, [*words, "--micro_batch=0", "--device=cpu", f"--precision={precision}"])
    return replace(config, compile=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "precision"),
    [("emoji32.toml", "bf16"), ("cifar10_biggan.toml", "fp32"), ("imagenet128_hamgan_strong.toml", "bf16")],
)
def test_both_phases_are_four_graphs_without_breaks(
    preset: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tracing and differentiating as always; the last stage, which makes machine code, does not decide about graphs.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    step = trial_step(narrow(preset, precision), torch.device("cpu"))
    step()
    # G without and with a gradient, D of both halves and of the generated one.
    assert counters["stats"]["unique_graphs"] == 4
    assert not counters["graph_break"]
    for _ in range(3):
        step()
    assert counters["stats"]["unique_graphs"] == 4

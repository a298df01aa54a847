"""The moving average of the weights: what it is, that it is what is tested, that a resumed run has the same one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hamgan import checkpoint
from hamgan.segmentation.config import TrainConfig
from hamgan.segmentation.evaluate import predictions
from hamgan.segmentation.open_data import open_data
from hamgan.segmentation.run import build_run, restore, state_of, update_average
from hamgan.segmentation.scores import confusion_matrix, scores
from hamgan.segmentation.trained import initialize, open_trained
from hamgan.segmentation.training import train


@pytest.fixture
def averaging(tiny_run: TrainConfig) -> TrainConfig:
    return replace(tiny_run, ema_decay=0.9, data=replace(tiny_run.data, num_test=8))


def test_the_average_follows_the_recurrence(averaging: TrainConfig) -> None:
    data = open_data(averaging.data, "train")
    run = build_run(averaging, torch.device("cpu"), data, fresh=True)
    assert run.average is not None
    name, weight = next(iter(run.model.named_parameters()))
    mean = run.model.get_buffer("backbone.stages.0.embed_norm.running_mean")
    expected, expected_mean = weight.detach().clone(), mean.clone()
    for step in range(1, 200):
        with torch.no_grad():
            weight += torch.randn_like(weight)
            mean += 1
        run.step = step
        update_average(run)
        decay = min(0.9, step / (step + 9))
        expected = decay * expected + (1 - decay) * weight.detach()
        expected_mean = decay * expected_mean + (1 - decay) * mean
    torch.testing.assert_close(run.average.get_parameter(name), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        run.average.get_buffer("backbone.stages.0.embed_norm.running_mean"), expected_mean, rtol=1e-5, atol=1e-5
    )
    for own, other in zip(run.model.state_dict().values(), run.average.state_dict().values(), strict=True):
        assert own.data_ptr() != other.data_ptr()


def test_stored_bases_are_not_averaged(averaging: TrainConfig) -> None:
    config = replace(averaging, model=replace(averaging.model, bases="online"))
    run = build_run(config, torch.device("cpu"), open_data(config.data, "train"), fresh=True)
    assert run.average is not None
    bases = run.model.get_buffer("head.hamburger.ham.bases")
    bases += 1
    run.step = 100
    update_average(run)
    assert torch.equal(run.average.get_buffer("head.hamburger.ham.bases"), bases)


def test_the_average_is_what_is_tested_saved_and_begun_from(averaging: TrainConfig, tmp_path: Path) -> None:
    path = train(averaging, preset="p", root=tmp_path)
    state = checkpoint.load(path / "checkpoint-00000006.pt")
    differing = [name for name, tensor in state["model"].items() if not torch.equal(tensor, state["average"][name])]
    assert len(differing) > len(state["model"]) // 2
    trained = open_trained(path)
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(tensor, state["average"][name])
    initialize(trained.model, path)
    assert torch.equal(trained.model.state_dict()[differing[0]], state["average"][differing[0]])

    data = open_data(averaging.data, "test")
    confusion = sum(
        confusion_matrix(one.sample.labels, one.classes, data.num_classes)
        for one in predictions(trained.model, data, range(8), averaging.test, autocast=torch.no_grad)
    )
    line = (path / "metrics.jsonl").read_text().splitlines()[-1]
    assert f'"miou": {scores(confusion).miou}' in line  # type: ignore[arg-type]


def test_a_resumed_run_has_the_same_average(averaging: TrainConfig, tmp_path: Path) -> None:
    whole = train(averaging, preset="whole", root=tmp_path)
    again = train(averaging, preset="again", root=tmp_path)
    (again / "checkpoint-00000006.pt").unlink()
    train(averaging, preset="again", root=tmp_path)
    expected, got = (checkpoint.load(run / "checkpoint-00000006.pt")["average"] for run in (whole, again))
    assert expected.keys() == got.keys() and all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_checkpoint_without_its_average_is_refused(averaging: TrainConfig) -> None:
    data = open_data(averaging.data, "train")
    run = build_run(averaging, torch.device("cpu"), data, fresh=True)
    state = state_of(run) | {"average": {"head.classify.bias": torch.zeros(10)}}
    with pytest.raises(ValueError, match="the checkpoint's average has not the tensors of this network"):
        restore(run, state)
    with pytest.raises(ValueError):
        restore(run, state | {"average": None})


@pytest.mark.parametrize("key", ["ema_decay", "label_smoothing"])
@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_impossible_values_are_refused(tiny_run: TrainConfig, key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{key} is {value}; it must be in \[0, 1\)"):
        replace(tiny_run, **{key: value})  # type: ignore[arg-type]

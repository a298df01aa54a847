"""The published recipes: learning rates by step, and what decays."""

from dataclasses import replace

import pytest
import torch

from hamgan.segmentation.model import SegmentationConfig, Segmentor
from hamgan.segmentation.optimizer import OptimizerConfig, build_optimizer, set_learning_rate

LIGHT_HAM = OptimizerConfig()
HAM_NET = OptimizerConfig(
    kind="sgd", lr=0.01, beta1=0.9, weight_decay=5e-4, decay="all", power=0.9, min_lr=1e-4, warmup=0
)
VOC = replace(HAM_NET, lr=9e-3, weight_decay=1e-4, decay="convolutions", min_lr=0.0, bias_lr=2.0)


@pytest.mark.parametrize(
    ("config", "step", "expected"),
    [
        (LIGHT_HAM, 0, 6e-5 * 1e-6),
        (LIGHT_HAM, 750, 6e-5 * (1 - 750 / 160_000) * (0.5 + 0.5e-6)),
        (LIGHT_HAM, 1500, 6e-5 * (1 - 1500 / 160_000)),
        (LIGHT_HAM, 80_000, 3e-5),
        (HAM_NET, 0, 0.01),
        (HAM_NET, 80_000, 0.0099 * 0.5**0.9 + 1e-4),
        (HAM_NET, 159_999, 0.0099 * (1 / 160_000) ** 0.9 + 1e-4),
        (VOC, 40_000, 9e-3 * 0.75**0.9),
    ],
)
def test_learning_rates_are_the_published_ones(config: OptimizerConfig, step: int, expected: float) -> None:
    assert config.learning_rate(step, 160_000) == pytest.approx(expected, rel=1e-12)


def decaying(config: OptimizerConfig, model: Segmentor) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, config).param_groups
    found = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(found) == sorted(names.values())  # every parameter once
    return {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}


def test_what_decays_is_as_published(tiny_model: SegmentationConfig) -> None:
    model = Segmentor(tiny_model)
    names = {name for name, _ in model.named_parameters()}
    assert decaying(HAM_NET, model) == names
    spared = names - decaying(LIGHT_HAM, model)
    assert spared and all(name.startswith("backbone.") and "norm" in name for name in spared)
    assert spared == {name for name in names if name.startswith("backbone.") and "norm" in name}
    assert not any("scale" in name for name in spared)  # the layer scales decay in the public code
    convolutions = decaying(VOC, model)
    assert all(model.get_parameter(name).dim() == 4 and name.endswith("weight") for name in convolutions)
    assert {name for name in names if model.get_parameter(name).dim() == 4} == convolutions


def test_biases_learn_twice_as_fast_where_published(tiny_model: SegmentationConfig) -> None:
    model = Segmentor(tiny_model)
    optimizer = build_optimizer(model, VOC)
    set_learning_rate(optimizer, 0.5)
    biases = {id(parameter) for name, parameter in model.named_parameters() if name.endswith("bias")}
    for group in optimizer.param_groups:
        assert {id(p) in biases for p in group["params"]} == {group["lr"] == 1.0}
    assert isinstance(optimizer, torch.optim.SGD)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"lr": 0.0}, "lr is 0.0"), ({"beta1": 1.0}, "beta1 is 1.0"), ({"min_lr": 1.0}, "min_lr is 1.0")],
)
def test_impossible_recipes_are_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**given)  # type: ignore[arg-type]

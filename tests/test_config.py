"""Configurations: presets, overrides, messages, and the way back to TOML."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch

from hamgan.config import (
    difference,
    dump_toml,
    from_mapping,
    help_page,
    parse_overrides,
    read_preset,
    split_options,
    to_mapping,
)
from hamgan.models.discriminator import Discriminator
from hamgan.models.generator import Generator
from hamgan.segmentation.config import load_config as load_segmentation_config
from hamgan.segmentation.model import Segmentor
from hamgan.training.config import TrainConfig, load_config, parse_duration

CONFIGS = Path(__file__).parent.parent / "configs"
SEGMENTATION_PRESETS = sorted(CONFIGS.glob("segmentation_*.toml"))
PRESETS = sorted(set(CONFIGS.glob("*.toml")) - set(SEGMENTATION_PRESETS))


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 3
    """How large."""
    kinds: tuple[Literal["a", "b"], ...] = ()
    """Which kinds."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"inner.size is {self.size}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Outer:
    rate: float = 0.5
    """How fast."""
    name: str = "x"
    """What."""
    on: bool = True
    """Whether."""
    inner: Inner = field(default_factory=Inner)


def check_preset(path: Path, load: Callable[[Path], object], tmp_path: Path) -> None:
    """A preset survives dumping, and its header says command, hardware and number."""
    (tmp_path / "dumped.toml").write_text(dump_toml(load(path)))
    assert load(tmp_path / "dumped.toml") == load(path)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("Command:", "Hardware:", "Expected:"):
        assert any(word in line for line in header), f"{path.name} does not say its {word}"


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_builds_survives_dumping_and_says_its_command(path: Path, tmp_path: Path) -> None:
    check_preset(path, load_config, tmp_path)
    config = load_config(path)
    assert from_mapping(TrainConfig, to_mapping(config), "again") == config
    with torch.device("meta"):
        for network in (Generator(config.generator), Discriminator(config.discriminator)):
            assert sum(p.numel() for p in network.parameters()) > 0


@pytest.mark.parametrize("path", SEGMENTATION_PRESETS, ids=lambda path: path.stem)
def test_every_segmentation_preset_builds_likewise(path: Path, tmp_path: Path) -> None:
    check_preset(path, load_segmentation_config, tmp_path)
    with torch.device("meta"):
        assert sum(p.numel() for p in Segmentor(load_segmentation_config(path).model).parameters()) > 0


def test_the_command_line_wins_over_preset_and_base(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("rate = 0.1\nname = 'base'\n[inner]\nsize = 1\n")
    (tmp_path / "top.toml").write_text("base = 'base.toml'\nname = 'top'\n[inner]\nkinds = ['a']\n")
    values, sources = parse_overrides(["--rate", "1e-4", "--inner.kinds", "b,a", "--on=false"])
    merged = from_mapping(Outer, read_preset(tmp_path / "top.toml") | values, "top.toml", sources)
    assert merged == Outer(rate=1e-4, name="top", on=False, inner=Inner(size=3, kinds=("b", "a")))
    (tmp_path / "third.toml").write_text("base = 'top.toml'\n")
    with pytest.raises(ValueError, match="has a base itself"):
        read_preset(tmp_path / "third.toml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rat", "1"], "--rat: unknown key 'rat'; did you mean 'rate'?"),
        (["--inner.sise", "1"], "--inner.sise: unknown key 'inner.sise'; did you mean 'inner.size'?"),
        (["--inner.size", "big"], "--inner.size: 'inner.size' is 'big'; it must be an integer"),
        (["--inner.size", "1.5"], "--inner.size: 'inner.size' is 1.5; it must be an integer"),
        (["--inner.size", "true"], "--inner.size: 'inner.size' is True; it must be an integer"),
        (["--inner.size", "0"], "--inner.size: inner.size is 0; it must be at least 1"),
        (["--inner.kinds", "c"], "--inner.kinds: 'inner.kinds' is 'c'; allowed are a, b"),
        (["--inner", "3"], "--inner: 'inner' is 3; it must be a section with keys of its own"),
        (["--rate"], "--rate: 'rate' is True; it must be a number"),
        (["--rate", "inf"], "--rate: 'rate' is inf; it must be finite"),
        (["--on", "yes"], "--on: 'on' is 'yes'; it must be true or false"),
        (["rate", "3"], "unexpected argument 'rate'; overrides are written --section.key value"),
    ],
)
def test_bad_options_name_option_value_and_what_is_allowed(options: list[str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        values, sources = parse_overrides(options)
        from_mapping(Outer, values, "preset.toml", sources)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[g_optimizer]\nbeta1 = 0.5", r"p\.toml: 'g_optimizer\.lr' is missing"),
        (f"duration = '{'9' * 400} steps'", "it must be a length"),
        ("x = " + "[" * 5000, r"p\.toml: not valid TOML: nested too deeply"),
        ("a." * 5000 + "b = 1", r"p\.toml: not valid TOML: a line has more than 200 dots"),
        ("#" * (1 << 20) + "\n", r"p\.toml: has 1,048,577 bytes"),
        (f"seed = {10**40}", "'seed' is 1000.*; it must fit into 64 bits"),
        (f"device = {['x' * 5000]}", r"'device' is \['x{10,120}\.\.\."),
    ],
)
def test_a_strangers_preset_cannot_do_harm(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_config(tmp_path / "p.toml")
    assert len(str(caught.value)) < 1000


def test_a_typo_in_a_preset_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text("[generator]\nchanels = 3\n")
    with pytest.raises(
        ValueError, match=r"p\.toml: unknown key 'generator\.chanels'; did you mean 'generator\.channels'\?"
    ):
        load_config(path)
    path.write_text("[generator\n")
    with pytest.raises(ValueError, match=r"p\.toml: not valid TOML"):
        load_config(path)
    with pytest.raises(FileNotFoundError, match=r"q\.toml: no such preset; did you mean .*p\.toml"):
        load_config(tmp_path / "q.toml")


def test_networks_of_different_size_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text("[generator]\nnum_classes = 5\n")
    with pytest.raises(ValueError, match=r"generator\.num_classes is 5 and discriminator\.num_classes is 1000"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "steps"),
    [("7 steps", 7), ("1 step", 1), ("100 images", 4), ("1 kimg", 32), ("2 epochs", 10), ("0.5 epochs", 3)],
)
def test_durations_become_steps(text: str, steps: int) -> None:
    assert parse_duration("duration", text).steps(images_per_step=32, num_images=160) == steps


@pytest.mark.parametrize("text", ["", "7", "steps", "-1 steps", "0 steps", "7 days", "7 stepses"])
def test_bad_durations_are_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration is '.*'; it must be a length such as"):
        TrainConfig(duration=text)


def test_micro_batches_divide_the_share_of_a_process() -> None:
    assert TrainConfig(batch_size=256).micro_batches(8) == (32, 1)
    assert TrainConfig(batch_size=256, micro_batch=8).micro_batches(8) == (8, 4)
    with pytest.raises(ValueError, match="3 processes do not divide it"):
        TrainConfig(batch_size=256).micro_batches(3)
    with pytest.raises(ValueError, match="micro_batch is 5"):
        TrainConfig(batch_size=256, micro_batch=5).micro_batches(1)


def test_differences_and_help_name_dotted_keys() -> None:
    assert difference(Outer(), Outer(inner=Inner(size=4))) == ["inner.size: 3 -> 4"]
    page = help_page(Outer)
    assert "--inner.size INT\n    How large. (default: 3)" in page
    assert "--generator.ham.rank" in help_page(TrainConfig)


def test_overrides_are_told_from_a_commands_own_options() -> None:
    typed = ["train", "p.toml", "--dry-run", "--generator.channels", "3", "--root", "r", "--seed=4"]
    kept, overrides = split_options(typed, ("--dry-run", "--root"))
    assert kept == ["train", "p.toml", "--dry-run", "--root", "r"]
    assert overrides == ["--generator.channels", "3", "--seed=4"]

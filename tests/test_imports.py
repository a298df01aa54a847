"""The house's import directions: strictly downwards."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hamgan

PACKAGE = Path(hamgan.__file__).parent

LAYERS = {
    "hamgan.config": 0,
    "hamgan.checkpoint": 0,
    "hamgan.dist": 0,
    "hamgan.nn": 0,
    "hamgan.nn.exchange": -1,
    "hamgan.background": 0,
    "hamgan.device": 1,
    "hamgan.progress": 1,
    "hamgan.run_folder": 1,
    "hamgan.report": 4,
    "hamgan.models": 1,
    "hamgan.data": 1,
    "hamgan.metrics": 1,
    "hamgan.sampling": 1,
    "hamgan.training.losses": 1,
    "hamgan.training.ema": 1,
    "hamgan.training.augment": 1,
    "hamgan.snapshot": 2,
    "hamgan.segmentation": 2,
    "hamgan.comparison": 3,
    "hamgan.evaluation": 4,
    "hamgan.gallery": 5,
    "hamgan.sweep": 5,
    "hamgan.recalibration": 4,
    "hamgan.model_card": 3,
    "hamgan.training": 2,
    "hamgan.interop": 3,
    "hamgan.training.observer": 4,
    "hamgan.training.loop": 5,
    "hamgan.explore": 6,
    "hamgan.cli": 7,
    "hamgan.__main__": 8,
}
"""Longest prefix counts. A run's evaluation joins metrics with sampling and data; the gallery builds on it."""


def place_of(module: str) -> str | None:
    return max((prefix for prefix in LAYERS if f"{module}.".startswith(f"{prefix}.")), key=len, default=None)


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name == "hamgan" or name.startswith("hamgan.")}


def module_of(path: Path) -> str:
    return ".".join(("hamgan", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", [p for p in SOURCES if p != PACKAGE / "__init__.py"], ids=module_of)
def test_imports_run_downwards(path: Path) -> None:
    place = place_of(module_of(path))
    assert place is not None, f"{path} has no room in the house"
    for name in imports_of(path):
        other = place_of(name)
        if other is None or other == place:
            continue
        same_room = {place, other} <= {"hamgan.training"} or (
            place == "hamgan.training.loop" and other == "hamgan.training"
        )
        below = LAYERS[other] < LAYERS[place]
        assert below or same_room, f"{module_of(path)} (layer {LAYERS[place]}) imports {name} (layer {LAYERS[other]})"


def test_nn_imports_torch_and_siblings_only() -> None:
    for path in (PACKAGE / "nn").glob("*.py"):
        assert all(name.startswith("hamgan.nn") for name in imports_of(path)), path


def test_segmentation_imports_nothing_of_the_gan() -> None:
    rooms = ("nn", "dist", "config", "checkpoint", "device", "progress", "run_folder", "segmentation")
    allowed = {f"hamgan.{name}" for name in rooms}
    for path in (PACKAGE / "segmentation").rglob("*.py"):
        places = {place_of(name) for name in imports_of(path)} - {None}
        assert places <= allowed, f"{path} imports {places - allowed}"


def test_a_section_is_handed_down_not_the_whole_configuration() -> None:
    for path in [*(PACKAGE / "models").glob("*.py"), *(PACKAGE / "nn").glob("*.py"), PACKAGE / "training" / "step.py"]:
        assert "hamgan.training.config" not in imports_of(path), path


@pytest.mark.parametrize("code", ["import hamgan", "import hamgan.cli"])
def test_importing_the_command_line_does_not_import_torch(code: str) -> None:
    check = f"{code}; import sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)

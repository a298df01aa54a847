"""Every notebook runs from top to bottom, as in a fresh clone, and what is committed has outputs."""

import base64
import importlib.util
import io
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
BOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("name", BOOKS)
def test_a_committed_notebook_was_run_in_order_and_is_small(name: str) -> None:
    path = FOLDER / name
    assert path.stat().st_size < 1_000_000
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in o.get("data", {}) or "image/jpeg" in o.get("data", {}) for o in outputs)
    assert not any(o.output_type == "error" or o.get("name") == "stderr" for o in outputs)


def test_tidying_takes_bars_and_second_copies_and_leaves_warnings() -> None:
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "scripts" / "notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    output, cell = nbformat.v4.new_output, nbformat.v4.new_code_cell("1")
    cell.outputs = [
        output(
            "stream", name="stderr", text="\r  0%|    | 0/4 [00:00<?, ?img/s]\r 50%|##  | 2/4\nwarning: 5 % missing\n"
        ),
        output("stream", name="stderr", text="\r100%|####| 4/4\n"),
        output("stream", name="stdout", text="100%|####|"),
        output("display_data", data={"image/png": "a", "image/jpeg": "b"}),
        output("display_data", data={"image/jpeg": "c"}),
    ]
    script.tidy(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("2"), cell]))
    assert [(o.get("name"), o.get("text"), o.get("data")) for o in cell.outputs] == [
        ("stderr", "warning: 5 % missing", None),
        ("stdout", "100%|####|", None),
        (None, None, {"image/png": "a"}),
        (None, None, {"image/jpeg": "c"}),
    ]


def run(path: Path) -> nbformat.NotebookNode:
    """Run a notebook in its folder; a failing cell raises."""
    book = nbformat.read(path, as_version=4)
    return NotebookClient(book, timeout=600, resources={"metadata": {"path": path.parent}}).execute()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository without data or runs, which the notebooks make."""
    root = tmp_path_factory.mktemp("clone")
    for name in ("configs", "notebooks"):
        shutil.copytree(ROOT / name, root / name)
    return root


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the notebooks train only so long that seeds and classes differ."""
    monkeypatch.setenv("HAMGAN_DURATION", "60 steps")
    monkeypatch.delenv("HAMGAN_RUN", raising=False)
    monkeypatch.delenv("HAMGAN_NUM_IMAGES", raising=False)


def holds(sheet: NDArray[np.uint8], image: NDArray[np.uint8]) -> bool:
    """Say whether an image lies somewhere in a sheet, bit for bit; both (H, W, 3)."""
    height, width = image.shape[:2]
    first = image[0].tobytes()
    for y in range(len(sheet) - height + 1):
        line, start = sheet[y].tobytes(), -1
        while (start := line.find(first, start + 1)) >= 0:
            x = start // 3
            if start % 3 == 0 and np.array_equal(sheet[y : y + height, x : x + width], image):
                return True
    return False


@pytest.mark.slow
@pytest.mark.usefixtures("_short")
def test_the_whole_path_shows_what_a_process_of_its_own_draws(clone: Path) -> None:
    book = run(clone / "notebooks" / "01-emoji.ipynb")
    pictures = [
        o.data["image/png"] for cell in book.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})
    ]
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[-1]))).convert("RGB"))
    out = clone / "drawn"
    command = [sys.executable, "-m", "hamgan", "sample", "runs/00000-notebook", "--device", "cpu", "--seeds", "0-7"]
    subprocess.run([*command, "--out", str(out)], cwd=clone, check=True, capture_output=True)
    drawn = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(out.glob("*.png"))]
    assert len({image.tobytes() for image in drawn}) == 9 * 8
    assert all(holds(sheet, image) for image in drawn)
    other = drawn[0].copy()
    other[-1, -1, -1] ^= 1
    assert not holds(sheet, other)


@pytest.mark.slow
@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("name", ["02-interpolation-and-truncation.ipynb", "04-read-an-evaluation.ipynb"])
def test_a_notebook_takes_the_run_of_the_first_or_trains_it(clone: Path, name: str) -> None:
    run(clone / "notebooks" / name)
    assert [path.name for path in (clone / "runs").iterdir()] == ["00000-notebook"]


@pytest.mark.slow
def test_the_hamburger_runs_by_itself() -> None:
    run(FOLDER / "03-hamburger.ipynb")

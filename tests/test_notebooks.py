"""Every notebook runs from top to bottom, and what is committed has outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
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


def run(path: Path) -> nbformat.NotebookNode:
    """Run a notebook in its folder; a failing cell raises."""
    book = nbformat.read(path, as_version=4)
    return NotebookClient(book, timeout=600, resources={"metadata": {"path": path.parent}}).execute()


@pytest.mark.slow
def test_the_hamburger_runs_by_itself() -> None:
    run(FOLDER / "03-hamburger.ipynb")

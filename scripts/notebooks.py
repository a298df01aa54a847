"""Run notebooks from top to bottom and keep their outputs: `make notebooks`, or `python scripts/notebooks.py FILE...`.

A notebook is only replaced when it has run to its end. What it reads from the environment stands in its first cells. Progress
bars are not kept, nor JPEGs beside PNGs of the same picture.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
BAR = re.compile(r"\d+%\|")


def tidy(book: nbformat.NotebookNode) -> None:
    """Remove progress bars from what a notebook's cells wrote to stderr, and pictures that are there twice."""
    for cell in book.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data.pop("image/jpeg", None)
            if output.get("name") == "stderr":
                lines = re.split(r"[\r\n]+", output.text)
                output.text = "\n".join(line for line in lines if line.strip() and not BAR.search(line))
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr" or output.text]


def main(paths: list[Path]) -> int:
    """Run each; return 0, or 2 where a file is missing or a cell fails."""
    for path in paths or sorted(FOLDER.glob("*.ipynb")):
        if not path.is_file():
            print(f"{path}: no such notebook", file=sys.stderr)
            return 2
        book = nbformat.read(path, as_version=4)
        # Without the times of each cell, so that running again changes nothing but outputs.
        client = NotebookClient(book, timeout=3600, record_timing=False, resources={"metadata": {"path": path.parent}})
        try:
            client.execute()
        except CellExecutionError as error:
            print(f"{path}: {error.ename}: {error.evalue}", file=sys.stderr)
            return 2
        tidy(book)
        nbformat.write(book, path)
        print(f"{path}: {path.stat().st_size / 1024:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main([Path(argument) for argument in sys.argv[1:]]))

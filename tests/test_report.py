"""The report of a run: one file that needs no network, whatever lies in the folder."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from hamgan.cli import main
from hamgan.report import write_report


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "00000-run"
    (folder / "samples").mkdir(parents=True)
    (folder / "config.toml").write_text('duration = "3 steps"\n')
    (folder / "log.txt").write_text("2026-01-01T00:00:00 <script>alert(1)</script>\n")
    rows = [
        {"step": step, "d_loss": 1.0 / step, "g_loss": None if step == 2 else 0.5, "nimg": step} for step in range(1, 4)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "d_lo'  # torn by a kill
    (folder / "stats.jsonl").write_text(text)
    event = {"time": "2026-01-01T00:00:00", "step": 2, "event": "rollback", "reason": "<img src=x onerror=alert(2)>"}
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    for name in ("real", "00000001", "00000003"):
        Image.new("RGB", (8, 8), (200, 30, 30)).save(folder / "samples" / f"{name}.png")
    return folder


def test_a_report_is_whole_and_runs_nothing_of_the_folder(run: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes((run / "samples" / "real.png").read_bytes())
    (run / "samples" / "00000002.png").symlink_to(tmp_path / "secret.png")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    summary = write_report(run)
    page = (run / "report.html").read_text("utf-8")
    assert summary.num_grids == 2 and summary.num_charts >= 1  # the link that leads out of the folder is left out
    assert "<script>alert(1)" not in page and "<img src=x" not in page
    assert "alert(1)" in page and "rollback" in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_files_that_are_missing_leave_their_section_out(run: Path) -> None:
    for name in ("stats.jsonl", "events.jsonl", "log.txt"):
        (run / name).unlink()
    assert write_report(run).num_charts == 0

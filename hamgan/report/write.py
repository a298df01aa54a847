"""From a run's folder to a file."""

from dataclasses import dataclass
from pathlib import Path

from hamgan.checkpoint import write_atomically
from hamgan.report.content import gather
from hamgan.report.folder import RunReader
from hamgan.report.page import render

REPORT = "report.html"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What was written."""

    path: Path
    size: int
    """Bytes."""
    num_charts: int
    num_grids: int
    left_out: list[str]
    """What lay in the folder and is not in the report, with the reason."""

    def __str__(self) -> str:
        return f"{self.path}: {self.size / 1e6:.1f} MB, {self.num_charts} charts, {self.num_grids} grids"


def write_report(run: Path, out: Path | None = None) -> Summary:
    """Write a run's report, in one step, whether the run is finished or still training.

    Args:
        run: Its folder, of which nothing else is changed or locked.
        out: The file; None: report.html in the folder.

    Raises:
        FileNotFoundError: If the folder is not a run's.
        OSError: If the folder cannot be read or the file not written.
    """
    path = out or run / REPORT
    with RunReader(run) as reader:
        content = gather(reader)
    page = render(content)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_atomically(path, lambda file: file.write(page))
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror}); --out FILE puts it elsewhere") from None
    return Summary(
        path=path,
        size=len(page),
        num_charts=len(content.charts),
        num_grids=len(content.pictures.grids),
        left_out=content.left_out,
    )

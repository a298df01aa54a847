"""Reading a run's folder that may be a stranger's, damaged, or being written to at this moment."""

import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

from tqdm import tqdm

MARKS = ("config.toml", "stats.jsonl")
"""A folder with one of these is a run's."""
MAX_TEXT = 1 << 18
"""Largest configuration, environment or card that is read, bytes."""
MAX_LINE = 1 << 20
"""Longest row that is read, bytes."""
PROGRESS_BYTES = 64 << 20
"""Files from this size on show how far their reading is."""


def printable(text: str) -> str:
    """Replace what neither a page nor a terminal should be given: control and half characters, marks that reorder text."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]", "\ufffd", text)


class Entry(NamedTuple):
    """A file in a folder."""

    name: str
    size: int
    """Bytes."""
    modified: float
    """Seconds since the epoch."""


class RunReader:
    """A run's folder, open for reading; every name is looked up in the folder itself and no symbolic link is followed.

    What cannot be read is left out, and `left_out` says so: only a folder that is no run is an error.

    Args:
        path: The folder.

    Raises:
        FileNotFoundError: If there is no such folder, or it is not a run's.
        OSError: If it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: no such run folder")
        self.path = path
        self.left_out: list[str] = []
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        if not any(name in self._listing(self._fd) for name in MARKS):
            os.close(self._fd)
            raise FileNotFoundError(f"{path}: not a run folder (it has no {' and no '.join(MARKS)})")

    def __enter__(self) -> "RunReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    @property
    def name(self) -> str:
        """The folder's own name, however it was reached."""
        return self.path.resolve().name

    def files(self, folder: str = "") -> list[Entry]:
        """Return the regular files of the run's folder, or of a folder in it, by name."""
        fd = self._folder(folder)
        if fd is None:
            return []
        try:
            found = []
            for name, status in sorted(self._listing(fd).items()):
                if stat.S_ISREG(status.st_mode):
                    found.append(Entry(name, status.st_size, status.st_mtime))
                elif stat.S_ISLNK(status.st_mode):
                    self._leave_out(f"{folder}/{name}" if folder else name, "a symbolic link is not followed")
            return found
        finally:
            os.close(fd)

    def folders(self) -> list[str]:
        """Return the names of the folders in the run's folder."""
        return sorted(name for name, status in self._listing(self._fd).items() if stat.S_ISDIR(status.st_mode))

    def read(self, name: str, limit: int, folder: str = "") -> bytes | None:
        """Return a file's bytes; None where there is no such file, or it is larger than the limit."""
        file = self._open(name, folder)
        if file is None:
            return None
        with file:
            content = file.read(limit + 1)
        if len(content) > limit:
            self._leave_out(name, f"larger than {limit / 1e6:.1f} MB")
            return None
        return content

    def text(self, name: str, folder: str = "") -> str | None:
        """Return a small file's text; None where there is none."""
        content = self.read(name, MAX_TEXT, folder)
        return None if content is None else content.decode("utf-8", "replace")

    def tail(self, name: str, lines: int, size: int = 1 << 17) -> list[str]:
        """Return the last lines of a text, within its last `size` bytes; none where there is no such file."""
        file = self._open(name)
        if file is None:
            return []
        with file:
            end = file.seek(0, os.SEEK_END)
            start = file.seek(max(0, end - size))
            rows = file.read(size).decode("utf-8", "replace").split("\n")
        if start:
            del rows[0]  # most likely cut in two
        if rows and not rows[-1]:
            rows.pop()
        return rows[-lines:]

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a .jsonl; none where there is no such file.

        Lines that are no JSON objects are passed over and counted, but for the last one without its newline, which the
        run may be writing at this moment, or may have died over.
        """
        file = self._open(name)
        if file is None:
            return
        bad = 0
        with file:
            size = os.fstat(file.fileno()).st_size
            bar = tqdm(total=size, unit="B", unit_scale=True, desc=name, disable=size < PROGRESS_BYTES, file=sys.stderr)
            done = 0
            while line := file.readline(MAX_LINE):
                done += len(line)
                if done > 1 << 22:
                    bar.update(done)
                    done = 0
                torn = not line.endswith(b"\n")
                while torn and len(line) == MAX_LINE:  # one endless line; find its end
                    line = file.readline(MAX_LINE)
                    done += len(line)
                    torn = not line.endswith(b"\n")
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    bad += not torn
                    continue
                if isinstance(row, dict):
                    yield row
                else:
                    bad += 1
            bar.update(done)
            bar.close()
        if bad:
            self._leave_out(name, f"{bad} line{'s are' if bad > 1 else ' is'} no JSON object")

    def _leave_out(self, name: str, reason: str) -> None:
        line = printable(f"{name}: {reason}")
        if line not in self.left_out:
            self.left_out.append(line)

    def _listing(self, fd: int) -> dict[str, os.stat_result]:
        """Return what lies in an open folder, links not followed; what vanishes meanwhile is not there."""
        found = {}
        for name in os.listdir(fd):
            try:
                found[name] = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
        return found

    def _folder(self, name: str) -> int | None:
        if not name:
            return os.dup(self._fd)
        try:
            return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._refuse(name, self._fd, error)
            return None

    def _open(self, name: str, folder: str = "") -> IO[bytes] | None:
        assert "/" not in name and "/" not in folder
        parent = self._folder(folder)
        if parent is None:
            return None
        try:
            # Not to block: a pipe without a writer would hold the report for ever.
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._refuse(name, parent, error)
            return None
        finally:
            os.close(parent)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            self._leave_out(name, "not a file")
            return None
        return os.fdopen(fd, "rb")

    def _refuse(self, name: str, parent: int, error: OSError) -> None:
        try:
            link = stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
        except OSError:
            link = False
        self._leave_out(name, "a symbolic link is not followed" if link else error.strerror or "cannot be read")

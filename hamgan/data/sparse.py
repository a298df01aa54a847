"""A file in memory of which only what was written takes space.

HDF5 writes the header of a training file into one of these. So it never meets a full disk, which it does not
survive, and never touches the pixels, which are a hole in the file.
"""

import io
from collections.abc import Iterator
from typing import Any

PAGE = 4096


class SparseBytes(io.RawIOBase):
    """A readable, writable, seekable file; unwritten pages are zeros and take no memory."""

    def __init__(self) -> None:
        super().__init__()
        self._pages: dict[int, bytearray] = {}
        self._position = 0
        self.size = 0

    def readable(self) -> bool:
        """Say yes."""
        return True

    def writable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset."""
        self._position = (0, self._position, self.size)[whence] + offset
        return self._position

    def tell(self) -> int:
        """Return the offset."""
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Change the size."""
        self.size = self._position if size is None else size
        self._pages = {number: page for number, page in self._pages.items() if number * PAGE < self.size}
        return self.size

    def readinto(self, target: Any) -> int:
        """Read at the offset."""
        view = memoryview(target).cast("B")
        count = max(0, min(len(view), self.size - self._position))
        done = 0
        while done < count:
            number, start = divmod(self._position, PAGE)
            taken = min(PAGE - start, count - done)
            page = self._pages.get(number)
            view[done : done + taken] = page[start : start + taken] if page is not None else bytes(taken)
            done += taken
            self._position += taken
        return count

    def write(self, data: Any) -> int:
        """Write at the offset."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            number, start = divmod(self._position, PAGE)
            taken = min(PAGE - start, len(view) - done)
            self._pages.setdefault(number, bytearray(PAGE))[start : start + taken] = view[done : done + taken]
            done += taken
            self._position += taken
        self.size = max(self.size, self._position)
        return done

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) of a range, zeros included, in pieces of a page or less."""
        while start < end:
            number, first = divmod(start, PAGE)
            taken = min(PAGE - first, end - start)
            page = self._pages.get(number)
            yield start, bytes(page[first : first + taken]) if page is not None else bytes(taken)
            start += taken

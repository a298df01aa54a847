"""Writing in the background: files reach the disk while training goes on."""

import threading
from collections.abc import Callable


class BackgroundWriter:
    """Runs one write at a time in a thread. What a write needs must be its own copy: training goes on meanwhile."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, write: Callable[[], object]) -> None:
        """Start a write, once the one before it has ended.

        Raises:
            OSError: If the one before it failed; the new one is not started then.
        """
        self.wait()

        def run() -> None:
            try:
                write()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="BackgroundWriter")
        self._thread.start()

    def wait(self) -> None:
        """Wait for the write in progress, if there is one.

        Raises:
            OSError: If it failed. It is raised once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    @property
    def busy(self) -> bool:
        """Whether a write is in progress."""
        return self._thread is not None and self._thread.is_alive()

    def poll(self) -> None:
        """Raise what a finished write has failed with, without waiting; errors as in `wait`."""
        if not self.busy:
            self.wait()

"""What accompanies a training loop, of whatever, without being training: means, the progress bar, signals."""

import signal
import time
from types import FrameType

import torch
from torch import Tensor
from tqdm import tqdm

from hamgan import dist

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals on which training finishes the step, saves and leaves with 128 + the signal's number."""
SAME_SECONDS = 1.0


class Stopped(Exception):  # noqa: N818  (not an error)
    """Training left early, on a signal, after saving."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Averages:
    """Means of statistics between two rows of the log; reads the device once a row."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, statistics: dict[str, Tensor]) -> None:
        """Add one step's statistics, scalars on the device."""
        for key, value in statistics.items():
            self._sums[key] = self._sums[key] + value if key in self._sums else value
            self._counts[key] = self._counts.get(key, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means over all processes, which must all call this, and start anew."""
        keys = list(self._sums)
        values = dist.all_reduce_mean(torch.stack([self._sums[key] for key in keys])).tolist() if keys else []
        row = {key: value / self._counts[key] for key, value in zip(keys, values, strict=True)}
        self._sums, self._counts = {}, {}
        return row


class Progress:
    """A bar with images a second and the time that is left, on rank 0.

    Args:
        start: Images seen before.
        total: Images to be seen in all.
    """

    def __init__(self, start: int, total: int) -> None:
        self._bar = tqdm(total=total, initial=start, unit="img", disable=not dist.is_main(), mininterval=1.0)
        self._last, self._now = start, start
        self._began = self._last_time = time.monotonic()

    def update(self, num_images: int) -> None:
        """Move the bar to a number of images."""
        self._bar.update(num_images - self._bar.n)
        self._now = num_images

    def restart(self, num_images: int) -> None:
        """Move the bar back to a number of images."""
        self._bar.reset()
        self._bar.initial = num_images
        self._bar.update(num_images)
        self._last = self._now = num_images

    def show(self, **values: float) -> None:
        """Show values behind the bar."""
        self._bar.set_postfix({key: f"{value:.2f}" for key, value in values.items()}, refresh=False)

    def rate(self) -> float:
        """Return images a second since the last call."""
        now = time.monotonic()
        rate = (self._now - self._last) / max(now - self._last_time, 1e-9)
        self._last, self._last_time = self._now, now
        return rate

    @property
    def seconds(self) -> float:
        """Seconds since this process began to train."""
        return time.monotonic() - self._began

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


class SignalWatch:
    """Remembers SIGINT, SIGTERM or SIGUSR1 (a scheduler's warning) until the step is finished; a later one acts at once.

    One that follows within SAME_SECONDS is the same one: make, torchrun and schedulers pass on what the group has had already.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._old = {number: signal.signal(number, self._note) for number in STOPPING}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > SAME_SECONDS:
            self.close()
            signal.raise_signal(number)

    def close(self) -> None:
        """Give both signals back their old meaning."""
        for number, handler in self._old.items():
            signal.signal(number, handler)

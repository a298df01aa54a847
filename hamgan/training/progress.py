"""What accompanies the loop without being training: means, schedules, the progress bar, signals."""

import signal
import time
from types import FrameType

import torch
from torch import Tensor
from tqdm import tqdm

from hamgan import dist
from hamgan.training.config import TrainConfig, parse_duration
from hamgan.training.step import Statistics


class Averages:
    """Means of statistics between two rows of the log; reads the device once a row."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, statistics: Statistics) -> None:
        """Add one phase's statistics."""
        for key, value in statistics.items():
            self._sums[key] = self._sums[key] + value if key in self._sums else value
            self._counts[key] = self._counts.get(key, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means and start anew."""
        keys = list(self._sums)
        values = torch.stack([self._sums[key] for key in keys]).tolist() if keys else []
        row = {key: value / self._counts[key] for key, value in zip(keys, values, strict=True)}
        self._sums, self._counts = {}, {}
        return row


class Schedule:
    """Which of the log's durations ends at a step; the last step ends none, as `finish` does all."""

    def __init__(self, config: TrainConfig, num_images: int, total_steps: int) -> None:
        images_per_step = config.batch_size * config.d_steps
        keys = ("stats_every", "grid_every", "health_every", "checkpoint_every")
        durations = {key: getattr(config.log, key) for key in keys} | {"eval_every": config.eval.every}
        self._steps = {
            key: parse_duration(key, text).steps(images_per_step, num_images) for key, text in durations.items()
        }
        self._total = total_steps

    def __call__(self, key: str, step: int) -> bool:
        """Say whether the duration named `log.<key>` ends at this step."""
        return step % self._steps[key] == 0 and (step < self._total or key == "stats_every")


class Progress:
    """A bar with images a second and the time that is left, on rank 0."""

    def __init__(self, start: int, total: int) -> None:
        self._bar = tqdm(total=total, initial=start, unit="img", disable=not dist.is_main(), mininterval=1.0)
        self._start, self._last = start, start
        self._began = self._last_time = time.monotonic()

    def update(self, nimg: int) -> None:
        """Move the bar to a number of images."""
        self._bar.update(nimg - self._bar.n)

    def show(self, **values: float) -> None:
        """Show values behind the bar."""
        self._bar.set_postfix({key: f"{value:.2f}" for key, value in values.items()}, refresh=False)

    def rate(self) -> float:
        """Return images a second since the last call."""
        now, nimg = time.monotonic(), int(self._bar.n)
        rate = (nimg - self._last) / max(now - self._last_time, 1e-9)
        self._last, self._last_time = nimg, now
        return rate

    @property
    def seconds(self) -> float:
        """Seconds since this process began to train."""
        return time.monotonic() - self._began

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


class SignalWatch:
    """Remembers SIGINT or SIGTERM until the step is finished; a second one acts at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._old = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.close()

    def close(self) -> None:
        """Give both signals back their old meaning."""
        for number, handler in self._old.items():
            signal.signal(number, handler)

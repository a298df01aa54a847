"""What is due after which step."""

from typing import Literal

from hamgan.training.config import TrainConfig, parse_duration

Due = Literal["stats_every", "grid_every", "health_every", "checkpoint_every", "eval_every"]


class Schedule:
    """Which of the log's durations ends at a step; the last step ends none, as the end of training does all."""

    def __init__(self, config: TrainConfig, num_images: int, total_steps: int) -> None:
        log = config.log
        durations: dict[Due, str] = {
            "stats_every": log.stats_every,
            "grid_every": log.grid_every,
            "health_every": log.health_every,
            "checkpoint_every": log.checkpoint_every,
            "eval_every": config.eval.every,
        }
        per_step = config.batch_size * config.d_steps
        self._steps = {key: parse_duration(key, text).steps(per_step, num_images) for key, text in durations.items()}
        self._total = total_steps

    def steps(self, key: Due) -> int:
        """Return the duration in steps."""
        return self._steps[key]

    def __call__(self, key: Due, step: int) -> bool:
        """Say whether the duration ends at this step."""
        return step % self._steps[key] == 0 and (step < self._total or key == "stats_every")

"""What flows into training: real images in their order, and the noise beside them, cut into micro-batches."""

import numpy as np
from torch import Tensor

from hamgan import dist
from hamgan.data.loader import BatchLoader
from hamgan.data.sampler import ShuffledSampler
from hamgan.training.augment import flip
from hamgan.training.noise import NoiseSource, Phase
from hamgan.training.run import Run
from hamgan.training.step import MicroBatch


class Stream:
    """This process's share of every batch, from the run's present step on.

    After a rollback the run sees another order and other noise: both follow from the seed and the number of rollbacks.

    Args:
        run: Its step says where to begin.
        micro_size: Images a micro-batch.
        num_micro: Micro-batches of this process a batch.
    """

    def __init__(self, run: Run, micro_size: int, num_micro: int) -> None:
        config = run.config
        self._run, self._micro_size, self._num_micro = run, micro_size, num_micro
        self._first_row = dist.rank() * micro_size * num_micro
        seed = reseeded(config.seed, run.sentinel.rollbacks)
        self._noise = NoiseSource(
            seed=seed,
            z_dim=config.generator.z_dim,
            num_classes=config.generator.num_classes,
            batch_size=config.batch_size,
            device=run.device,
        )
        shown = run.shown
        sampler = ShuffledSampler(
            shown.num_images, seed, labels=shown.labels, class_balanced=config.data.class_balanced
        )
        self._loader = BatchLoader(
            shown,
            sampler,
            batch_size=config.batch_size,
            position=run.nimg,
            rank=dist.rank(),
            world_size=dist.world_size(),
            pin_memory=run.device.type == "cuda",
        )

    def real(self, repeat: int) -> tuple[Tensor, Tensor]:
        """Return the next real images, (B, 3, H, W) in [-1, 1], mirrored by chance where configured, and classes (B,)."""
        run = self._run
        images, y = next(self._loader)
        images = images.to(run.device, non_blocking=True).float().div_(127.5).sub_(1)
        if run.config.data.flip:
            rows = self._first_row, self._first_row + len(y)
            images = flip(images, self._noise.flips(run.step, repeat, *rows))
        return images, y.to(run.device, non_blocking=True)

    def micro_batches(self, phase: Phase, repeat: int, real: Tensor, y: Tensor) -> list[MicroBatch]:
        """Cut real images into micro-batches with their noise."""
        cuts = [(m * self._micro_size, (m + 1) * self._micro_size) for m in range(self._num_micro)]
        first = self._first_row
        return [
            MicroBatch(
                real=real[a:b], y=y[a:b], noise=self._noise.draw(self._run.step, phase, repeat, first + a, first + b)
            )
            for a, b in cuts
        ]

    def close(self) -> None:
        """Stop reading ahead; may be called twice."""
        self._loader.close()


def reseeded(seed: int, rollbacks: int) -> int:
    """Return the seed of data order and noise after a number of rollbacks; the seed itself before any."""
    if not rollbacks:
        return seed
    return int(np.random.SeedSequence([seed, rollbacks]).generate_state(1, np.uint64)[0] >> 1)

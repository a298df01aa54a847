"""The cheap evaluation that a run makes of itself."""

import numpy as np
import torch
from torch import Tensor

from hamgan.data.hdf5 import TrainingFile
from hamgan.metrics import kernel_distance, load_extractor
from hamgan.sampling.draw import DrawsImages, draw_images


class QuickEvaluation:
    """The kernel distance of a generator to a few real images, cheap enough to be taken while training.

    Args:
        data: The training file.
        extractor: Name of the feature network.
        num_images: Generated images, and real ones at most.
        device: Where the network runs.
    """

    def __init__(self, data: TrainingFile, extractor: str, num_images: int, device: torch.device) -> None:
        network = load_extractor(extractor, device=device)
        self.name = f"kd{num_images}_{network.name}"
        chosen = np.sort(np.random.RandomState(2020).permutation(data.num_images)[:num_images])
        self._labels = np.random.RandomState(2020).permutation(np.resize(data.labels, num_images))
        self._extractor = network
        real = torch.from_numpy(data.read(chosen)).permute(0, 3, 1, 2)
        self._real = self._features(real)

    def _features(self, images: Tensor) -> np.ndarray:
        pools = [self._extractor(part.contiguous()).pool.cpu() for part in images.split(64)]
        return torch.cat(pools).numpy()

    def __call__(self, G: DrawsImages) -> float:
        """Return the unbiased kernel distance of images from seeds 0, 1, ... with the data's class frequencies."""
        images = draw_images(G, range(len(self._labels)), self._labels.tolist())
        return float(kernel_distance(self._features(images), self._real))

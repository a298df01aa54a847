"""Random numbers as a function of a key and a counter: no state, the same on every device and for any split of a batch.

Two rounds of a 32-bit integer hash with full avalanche in the place of a generator. It is not for cryptography; it is for noise
that has to follow the sample, not the process that computes it.

Source: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3" (the idea); C. Wellons, "lowbias32" (the hash).
"""

import torch
from torch import Tensor

from hamgan.nn import kernel_library, tensor_kernels

GOLDEN = -1640531527
"""2**32 over the golden ratio, as int32: neighbouring counters land far apart."""


def uniform(keys: Tensor, count: int) -> Tensor:
    """Draw numbers for each key.

    Args:
        keys: int64 (B,), any values; 64 bits count.
        count: Numbers a key, below 2**32.

    Returns:
        float32 (B, count), uniform in (0, 1): odd multiples of 2**-24, so neither end is drawn. On the keys' device.
    """
    if keys.dtype == torch.int64 and keys.dim() == 1 and keys.is_contiguous() and kernel_library.usable(keys):
        return tensor_kernels.uniform(keys, count)
    low = keys.to(torch.int32)[:, None]
    high = (keys >> 32).to(torch.int32)[:, None]
    counter = torch.arange(count, dtype=torch.int32, device=keys.device) * GOLDEN
    bits = _hash(_hash(counter ^ low) ^ high)
    return _shift(bits, 9).float().add_(0.5).mul_(2.0**-23)


def _hash(x: Tensor) -> Tensor:
    """Mix each int32; changes x in place. Products wrap, as machine integers do."""
    x ^= _shift(x, 16)
    x *= 0x7FEB352D
    x ^= _shift(x, 15)
    x *= 0x846CA68B - 2**32
    x ^= _shift(x, 16)
    return x


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right without the sign."""
    return (x >> bits).bitwise_and_((1 << (32 - bits)) - 1)

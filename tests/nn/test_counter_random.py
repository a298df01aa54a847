"""Counter-based noise: uniform, independent between keys and counters, and free of any split."""

import torch

from hamgan.nn.counter_random import uniform


def hashed(x: int) -> int:
    """lowbias32 in plain integers."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


def test_equals_the_hash_in_plain_integers() -> None:
    keys = torch.tensor([0, 1, -1, 2**62 + 12345, -(2**63)])
    got = uniform(keys, 50)
    for row, key in enumerate(keys.tolist()):
        for counter in range(50):
            bits = hashed(hashed(counter * 0x9E3779B9 % 2**32 ^ key % 2**32) ^ (key >> 32) % 2**32)
            assert got[row, counter].item() == ((bits >> 9) + 0.5) / 2**23


def test_numbers_follow_the_key_alone() -> None:
    keys = torch.randint(2**62, (6,))
    whole = uniform(keys, 100)
    assert torch.equal(uniform(keys[2:4], 100), whole[2:4])
    assert torch.equal(uniform(keys, 40), whole[:, :40])


def test_numbers_are_uniform_and_uncorrelated() -> None:
    for keys in (torch.arange(64), torch.arange(64) << 32, torch.randint(2**62, (64,))):
        numbers = uniform(keys, 4096)
        assert numbers.min() > 0 and numbers.max() < 1
        counts = torch.histc(numbers, 64, 0, 1)
        expected = numbers.numel() / 64
        assert ((counts - expected).square() / expected).sum() < 63 + 6 * 126**0.5
        centred = (numbers - 0.5) * 12**0.5
        correlation = centred @ centred.T / 4096
        correlation.fill_diagonal_(0)
        assert correlation.abs().max() < 6 / 64
        lagged = (centred[:, 1:] * centred[:, :-1]).mean()
        assert lagged.abs() < 6 / numbers.numel() ** 0.5

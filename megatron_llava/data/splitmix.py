"""The numbers that decide an order, the same on every machine."""

from __future__ import annotations

import numpy as np

_MASK = (1 << 64) - 1


def hashes(seed: int, count: int) -> np.ndarray:
    """uint64 [count]: the stream of splitmix64 that a seed begins (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def one_hash(seed: int, place: int) -> int:
    """The number at one place of that stream."""
    start = (seed + (place + 1) * 0x9E3779B97F4A7C15) & _MASK
    return int(hashes((start - 0x9E3779B97F4A7C15) & _MASK, 1)[0])


def permutation(seed: int, count: int) -> np.ndarray:
    """int64 [count]: 0 to count - 1 in the order of their hashes' upper halves."""
    return np.argsort(hashes(seed, count) >> np.uint64(32), kind="stable")

"""64-bit hashes that differ from a given one in few bits, found without comparing all of them."""

from __future__ import annotations

from array import array

import numpy as np

BITS = 64


class HammingIndex:
    """Hashes so far, for questions about one distance.

    Two hashes that differ in at most d bits are equal in one of any d + 1 disjoint segments of
    them, so only hashes that share a segment are compared, and none is missed.

    Args:
        distance: bits, 0 to 63.
    """

    def __init__(self, distance: int) -> None:
        assert 0 <= distance < BITS
        self._distance = distance
        borders = [BITS * n // (distance + 1) for n in range(distance + 2)]
        self._segments = [
            (low, (1 << (high - low)) - 1) for low, high in zip(borders, borders[1:], strict=False)
        ]
        self._buckets: list[dict[int, array[int]]] = [{} for _ in self._segments]

    def add(self, value: int) -> None:
        """Add a hash that is not there yet."""
        for (shift, mask), buckets in zip(self._segments, self._buckets, strict=True):
            buckets.setdefault(value >> shift & mask, array("Q")).append(value)

    def near(self, value: int) -> list[int]:
        """The hashes that differ from this one in at most `distance` bits, in ascending order."""
        found: set[int] = set()
        for (shift, mask), buckets in zip(self._segments, self._buckets, strict=True):
            bucket = buckets.get(value >> shift & mask)
            if bucket is not None:
                hashes = np.frombuffer(bucket, dtype=np.uint64)
                bits = np.bitwise_count(hashes ^ np.uint64(value))
                found.update(hashes[bits <= self._distance].tolist())
        return sorted(found)


def hamming_distance(first: int, second: int) -> int:
    """Bits in which two hashes differ."""
    return (first ^ second).bit_count()

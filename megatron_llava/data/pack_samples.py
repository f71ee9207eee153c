"""Which samples share a pack: the compiled packer, and the same in plain Python.

A pack takes samples in shuffled order, and is completed by the longest one that fits as soon as
little room is left. With many samples of many lengths there nearly always is one of the very length
that is missing, so packs are fuller than best fit by decreasing length makes them; and what a pack
holds stays a random draw but for its last samples. Sorted by length, packs would hold samples of
one length, and often of one kind: losses of neighbouring steps were seen to differ by a factor of
fifty.

Both packers make the same packs on every machine; what a seed means is part of the format.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from functools import cache
from typing import NamedTuple

import numpy as np

from megatron_llava.platform.extension import library

_PROBES = 64
_MASK = (1 << 64) - 1
_PACK_STREAM = _MASK - 1


class Packs(NamedTuple):
    """Pack k holds sample_ids[offsets[k] : offsets[k + 1]], int64 both; every sample once."""

    sample_ids: np.ndarray
    offsets: np.ndarray


def pack_samples(
    lengths: np.ndarray,
    capacity: int,
    *,
    seed: int,
    window: int = 0,
    shuffle: bool = True,
    views: np.ndarray | None = None,
    max_views: int = 0,
) -> Packs:
    """Deal n samples to packs.

    Samples are shuffled. A pack takes them in that order while what is left of it stays at least as
    long as a quarter of the window's samples are; then it is completed by the longest sample that
    fits, the first of several, again and again. Then the packs are shuffled.

    Args:
        lengths: int64 [n], rows of each sample, 1 to `capacity`.
        capacity: rows of a pack.
        seed: 0 to 2**64 - 1, decides the order.
        window: samples packed together; 0 for all.
        shuffle: off, samples are taken in their own order and packs stay as made.
        views: int64 [n], views of each sample, 0 to `max_views`; None for no bound.
        max_views: views of a pack.
    """
    assert lengths.dtype == np.int64 and len(lengths) > 0
    assert views is None or (views.dtype == np.int64 and len(views) == len(lengths))
    packer = _compiled()
    how = (capacity, max_views, seed, window, shuffle)
    return pack_in_python(lengths, views, *how) if packer is None else packer(lengths, views, *how)


@cache
def _compiled() -> CompiledPacker | None:
    loaded = library()
    return None if loaded is None else CompiledPacker(loaded)


class CompiledPacker:
    """csrc/pack_samples.cpp, called through ctypes, which releases the GIL."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        self._pack = loaded.megatron_llava_pack_samples
        size, array = ctypes.c_int64, ctypes.c_void_p
        self._pack.argtypes = [
            *(size, array, array, size, size),
            *(ctypes.c_uint64, size, ctypes.c_int32, array, array),
        ]
        self._pack.restype = size

    def __call__(
        self,
        lengths: np.ndarray,
        views: np.ndarray | None,
        capacity: int,
        max_views: int,
        seed: int,
        window: int,
        shuffle: bool,
    ) -> Packs:
        lengths = np.ascontiguousarray(lengths)
        views = None if views is None else np.ascontiguousarray(views)
        count = len(lengths)
        sample_ids = np.empty(count, dtype=np.int64)
        # Only as many are written, and so made real by the kernel, as there are packs.
        offsets = np.empty(count + 1, dtype=np.int64)
        made = self._pack(
            count,
            lengths.ctypes.data,
            None if views is None else views.ctypes.data,
            capacity,
            max_views,
            seed,
            window,
            int(shuffle),
            sample_ids.ctypes.data,
            offsets.ctypes.data,
        )
        return Packs(sample_ids, offsets[: made + 1].copy())


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


def pack_in_python(
    lengths: np.ndarray,
    views: np.ndarray | None,
    capacity: int,
    max_views: int,
    seed: int,
    window: int,
    shuffle: bool,
) -> Packs:
    """What the compiled packer does, for machines without it and as its definition."""
    count = len(lengths)
    order = permutation(seed, count) if shuffle else np.arange(count)
    packs: list[list[int]] = []
    window = window or count
    for begin in range(0, count, window):
        packs += _fill(order[begin : begin + window].tolist(), lengths, views, capacity, max_views)
    if shuffle:
        packs = [packs[number] for number in permutation(one_hash(seed, _PACK_STREAM), len(packs))]
    sizes = [len(pack) for pack in packs]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Packs(np.array([i for pack in packs for i in pack], dtype=np.int64), offsets)


def _fill(
    ids: list[int], lengths: np.ndarray, views: np.ndarray | None, capacity: int, max_views: int
) -> list[list[int]]:
    left = _Left(ids, lengths, views)
    packs = []
    while left.queue:
        pack, room, views_left = [], capacity, max_views
        while left.queue:
            sample = next(iter(left.queue))
            short = room - left.length(sample) < left.reserve or left.views(sample) > views_left
            if room < capacity and short:
                break
            pack.append(left.take(sample))
            room, views_left = room - left.length(sample), views_left - left.views(sample)
        while room > 0:
            found = left.longest(room, views_left)
            if found is None:
                break
            pack.append(left.take(found))
            room, views_left = room - left.length(found), views_left - left.views(found)
        # The compiled packer lists the samples of a pack by their place in the order.
        packs.append(sorted(pack, key=left.place.__getitem__))
    return packs


class _Left:
    """The samples of a window that are in no pack yet."""

    def __init__(self, ids: list[int], lengths: np.ndarray, views: np.ndarray | None) -> None:
        self._lengths, self._views = lengths, views
        self.place = {sample: number for number, sample in enumerate(ids)}
        self.queue = dict.fromkeys(ids)
        ordered = sorted(self.length(sample) for sample in ids)
        self.reserve = ordered[len(ids) // 4]
        self._of_length: dict[int, list[int]] = {length: [] for length in ordered}
        for sample in ids:
            self._of_length[self.length(sample)].append(sample)
        self._sorted = sorted(self._of_length)

    def length(self, sample: int) -> int:
        return int(self._lengths[sample])

    def views(self, sample: int) -> int:
        return 0 if self._views is None else int(self._views[sample])

    def take(self, sample: int) -> int:
        del self.queue[sample]
        length = self.length(sample)
        self._of_length[length].remove(sample)
        if not self._of_length[length]:
            self._sorted.remove(length)
        return sample

    def longest(self, room: int, views_left: int) -> int | None:
        """The first sample of the greatest length that fits."""
        fitting = self._sorted[: bisect_right(self._sorted, room)][-_PROBES:]
        for length in reversed(fitting):
            sample = self._of_length[length][0]
            if self.views(sample) <= views_left:
                return sample
        return None

"""Which samples share a pack, in plain Python: the definition of what the compiled packer does."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import NamedTuple

import numpy as np

from megatron_llava.data.splitmix import one_hash, permutation

_PROBES = 64
_PAIRS = 16
_PARTS = 4096
_PACK_STREAM = (1 << 64) - 2


class Packs(NamedTuple):
    """Pack k holds sample_ids[offsets[k] : offsets[k + 1]], int64 both; every sample once."""

    sample_ids: np.ndarray
    offsets: np.ndarray


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
        pack = _Pack(left, capacity, max_views)
        pack.draw()
        pack.complete()
        # The compiled packer lists the samples of a pack by their place in the order.
        packs.append(sorted(pack.samples, key=left.place.__getitem__))
    return packs


class _Pack:
    """A pack that is being filled."""

    def __init__(self, left: _Left, capacity: int, max_views: int) -> None:
        self._left, self._capacity = left, capacity
        self.samples: list[int] = []
        self._rows, self._views = capacity, max_views
        self._drawn: int | None = None

    def draw(self) -> None:
        """Take samples in their order."""
        left = self._left
        while left.queue:
            sample = left.next_samples(1)[0]
            short = self._rows - left.length(sample) < left.reserve
            if self.samples and (short or left.views(sample) > self._views):
                break
            self._drawn = sample if self.samples else None
            self._take(sample)

    def complete(self) -> None:
        """Take what leaves least."""
        left, enough = self._left, self._capacity // _PARTS
        while self._rows > 0:
            found = self._longest()
            gap = self._rows - (0 if found is None else left.length(found))
            if self._rows - left.longest_length(self._rows) > enough:
                if self._take_two(enough + 1):
                    self._drawn = None
                    continue
                drawn, self._drawn = self._drawn, None
                if drawn is not None:
                    self._put_back(drawn)
                    if self._take_two(gap):
                        continue
                    self._take(drawn)
            if found is None:
                break
            self._take(found)

    def _take_two(self, below: int) -> bool:
        """Take the two that leave least, and less than ``below`` rows; False for none."""
        best = None
        for sample in self._left.next_samples(_PAIRS):
            if self._left.length(sample) > self._rows or self._left.views(sample) > self._views:
                continue
            self._take(sample)
            other = self._longest()
            gap = self._rows - (0 if other is None else self._left.length(other))
            self._put_back(sample)
            if gap < below:
                below, best = gap, sample
        if best is None:
            return False
        self._take(best)
        other = self._longest()
        if other is not None:
            self._take(other)
        return True

    def _longest(self) -> int | None:
        return self._left.longest(self._rows, self._views)

    def _take(self, sample: int) -> None:
        self._left.take(sample)
        self.samples.append(sample)
        self._rows -= self._left.length(sample)
        self._views -= self._left.views(sample)

    def _put_back(self, sample: int) -> None:
        self._left.put_back(sample)
        self.samples.remove(sample)
        self._rows += self._left.length(sample)
        self._views += self._left.views(sample)


class _Left:
    """The samples of a window that are in no pack yet."""

    def __init__(self, ids: list[int], lengths: np.ndarray, views: np.ndarray | None) -> None:
        self._lengths, self._views = lengths, views
        self.place = {sample: number for number, sample in enumerate(ids)}
        self.queue = list(ids)
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

    def next_samples(self, count: int) -> list[int]:
        return self.queue[:count]

    def take(self, sample: int) -> None:
        place = self.place.__getitem__
        del self.queue[bisect_left(self.queue, place(sample), key=place)]
        length = self.length(sample)
        self._of_length[length].remove(sample)
        if not self._of_length[length]:
            self._sorted.remove(length)

    def put_back(self, sample: int) -> None:
        insort(self.queue, sample, key=self.place.__getitem__)
        length = self.length(sample)
        if not self._of_length[length]:
            insort(self._sorted, length)
        insort(self._of_length[length], sample, key=self.place.__getitem__)

    def longest_length(self, rows: int) -> int:
        """The greatest length of up to so many rows, whatever its views; 0 for none."""
        found = bisect_right(self._sorted, rows)
        return self._sorted[found - 1] if found else 0

    def longest(self, room: int, views_left: int) -> int | None:
        """The first sample of the greatest length that fits."""
        fitting = self._sorted[: bisect_right(self._sorted, room)][-_PROBES:]
        for length in reversed(fitting):
            sample = self._of_length[length][0]
            if self.views(sample) <= views_left:
                return sample
        return None

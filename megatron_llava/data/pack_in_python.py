"""Which samples share a pack, in plain Python: the definition of what the compiled packer does."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from megatron_llava.data.splitmix import one_hash, permutation

_PROBES = 8
_TRIED = 12
_PARTS = 4096
_KINDS = 256
_ALL = 1 << 20
_LOSS = 1024
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
        ids = order[begin : begin + window].tolist()
        packs += _Window(ids, lengths, views, capacity, max_views).packs()
    if shuffle:
        packs = [packs[number] for number in permutation(one_hash(seed, _PACK_STREAM), len(packs))]
    sizes = [len(pack) for pack in packs]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Packs(np.array([i for pack in packs for i in pack], dtype=np.int64), offsets)


@dataclass(frozen=True)
class _Window:
    """Samples that are packed together."""

    ids: list[int]
    lengths: np.ndarray
    views: np.ndarray | None
    capacity: int
    max_views: int

    def packs(self) -> list[list[int]]:
        lengths = sorted(int(self.lengths[sample]) for sample in self.ids)
        count, rows = len(lengths), sum(lengths)
        packs = self._fill(lengths[count // 4], 0)
        fewest = -(-rows // self.capacity)
        if self.views is not None and (views := int(self.views[self.ids].sum())):
            fewest = max(fewest, -(-views // self.max_views))
        if len(packs) - fewest > fewest // _LOSS:
            packs = min(packs, self._fill(2 * (rows // count), _TRIED), key=len)
        return packs

    def _fill(self, reserve: int, tried: int) -> list[list[int]]:
        left = _Left(self.ids, self.lengths, self.views, self.capacity)
        packs = []
        while left.queue:
            pack = _Pack(left, self.capacity, self.max_views)
            pack.draw(reserve)
            pack.complete(tried)
            # The compiled packer lists the samples of a pack by their place in the order.
            packs.append(sorted(pack.samples, key=left.place.__getitem__))
        return packs


@dataclass(frozen=True)
class _Choice:
    """Samples that a pack takes next, the rows that they leave, and how much more is left of their
    kinds than of all samples."""

    samples: tuple[int, ...]
    gap: int
    surplus: int


class _Pack:
    """A pack that is being filled."""

    def __init__(self, left: _Left, capacity: int, max_views: int) -> None:
        self._left, self._enough = left, capacity // _PARTS
        self.samples: list[int] = []
        self._rows, self._views = capacity, max_views

    def draw(self, reserve: int) -> None:
        """Take samples in their order while so many rows are left."""
        left = self._left
        while left.queue:
            sample = left.queue[0]
            short = self._rows - left.length(sample) < reserve
            if self.samples and (short or left.views(sample) > self._views):
                break
            self._take(sample)

    def complete(self, tried: int) -> None:
        """Take what leaves least."""
        while self._rows > 0:
            choice = self._choose(tried)
            if not choice.samples:
                break
            for sample in choice.samples:
                self._take(sample)

    def _choose(self, tried: int) -> _Choice:
        """Of the next samples in the order none, one or two, and the longest that then fits."""
        shares = self._left.shares()
        best = self._with_longest((), shares)
        samples = self._left.queue[:tried]
        for place, first in enumerate(samples):
            if not self._fits(first):
                continue
            self._take(first)
            best = self._better(best, self._with_longest((first,), shares))
            for second in samples[place + 1 :]:
                if not self._fits(second):
                    continue
                self._take(second)
                best = self._better(best, self._with_longest((first, second), shares))
                self._put_back(second)
            self._put_back(first)
        return best

    def _with_longest(self, samples: tuple[int, ...], shares: _Shares) -> _Choice:
        longest = self._left.longest(self._rows, self._views)
        gap = self._rows
        if longest is not None:
            samples += (longest,)
            gap -= self._left.length(longest)
        surplus = sum(shares.of_kind[self._left.kind(sample)] - shares.of_all for sample in samples)
        return _Choice(samples, gap, surplus)

    def _better(self, old: _Choice, new: _Choice) -> _Choice:
        """Gaps that are small enough are as good as none."""
        old_gap, gap = max(old.gap, self._enough), max(new.gap, self._enough)
        if gap != old_gap:
            return new if gap < old_gap else old
        return new if new.surplus > old.surplus else old

    def _fits(self, sample: int) -> bool:
        return self._left.length(sample) <= self._rows and self._left.views(sample) <= self._views

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


class _Shares(NamedTuple):
    """How much is left, of `_ALL`."""

    of_kind: dict[int, int]
    of_all: int


class _Left:
    """The samples of a window that are in no pack yet."""

    def __init__(
        self, ids: list[int], lengths: np.ndarray, views: np.ndarray | None, capacity: int
    ) -> None:
        self._lengths, self._views, self._capacity = lengths, views, capacity
        self.place = {sample: number for number, sample in enumerate(ids)}
        self.queue = list(ids)
        self._of_length: dict[int, list[int]] = {}
        for sample in ids:
            self._of_length.setdefault(self.length(sample), []).append(sample)
        self._sorted = sorted(self._of_length)
        self._kinds = Counter(map(self.kind, ids))

    def length(self, sample: int) -> int:
        return int(self._lengths[sample])

    def views(self, sample: int) -> int:
        return 0 if self._views is None else int(self._views[sample])

    def kind(self, sample: int) -> int:
        """Samples of about one length are of one kind."""
        return self.length(sample) * _KINDS // self._capacity

    def shares(self) -> _Shares:
        left = Counter(map(self.kind, self.queue))
        of_kind = {kind: left[kind] * _ALL // count for kind, count in self._kinds.items()}
        return _Shares(of_kind, len(self.queue) * _ALL // len(self.place))

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

    def longest(self, rows: int, views: int) -> int | None:
        """The first sample of the greatest length that fits."""
        fitting = self._sorted[: bisect_right(self._sorted, rows)][-_PROBES:]
        for length in reversed(fitting):
            sample = self._of_length[length][0]
            if self.views(sample) <= views:
                return sample
        return None

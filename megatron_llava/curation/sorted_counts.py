"""Exact counts of more keys than memory holds.

An external merge sort: keys are counted in a dictionary; when it is full it goes to a file, sorted,
and starts empty; the files are merged, which adds up what several of them hold.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

_MERGED_AT_ONCE = 64  # files that are open at the same time


class SortedCounts:
    """Counts keys, then gives each with its count in ascending order, as often as asked.

    Args:
        folder: an empty folder of its own, which the caller removes.
        keys_in_memory: a full dictionary; one call of `add` may go beyond it.
    """

    def __init__(self, folder: Path, keys_in_memory: int) -> None:
        folder.mkdir()
        self._folder, self._keys_in_memory = folder, keys_in_memory
        self._counter: Counter[str] = Counter()
        self._runs: list[Path] = []
        self._number = 0

    def add(self, keys: Iterable[str]) -> None:
        """Count each key once more. A key holds neither a tab nor a newline."""
        self._counter.update(keys)
        self._spill_when_full()

    def add_count(self, key: str, count: int) -> None:
        self._counter[key] += count
        self._spill_when_full()

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """(key, count), keys ascending by code points."""
        if self._counter:
            self._spill()
        if len(self._runs) > 1:
            self._merge()
        for run in self._runs:
            yield from _read(run)

    def _spill_when_full(self) -> None:
        if len(self._counter) >= self._keys_in_memory:
            self._spill()

    def _spill(self) -> None:
        self._write(sorted(self._counter.items()))
        self._counter.clear()
        if len(self._runs) == _MERGED_AT_ONCE:
            self._merge()

    def _merge(self) -> None:
        runs, self._runs = self._runs, []
        merged = heapq.merge(*map(_read, runs), key=itemgetter(0))
        self._write(
            (key, sum(count for _, count in group))
            for key, group in groupby(merged, key=itemgetter(0))
        )
        for run in runs:
            run.unlink()

    def _write(self, items: Iterable[tuple[str, int]]) -> None:
        path = self._folder / f"{self._number}.tsv"
        self._number += 1
        with path.open("w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(f"{key}\t{count}\n" for key, count in items)
        self._runs.append(path)


def _read(path: Path) -> Iterator[tuple[str, int]]:
    with path.open(encoding="utf-8", newline="\n") as stream:
        for line in stream:
            key, _, count = line.partition("\t")
            yield key, int(count)

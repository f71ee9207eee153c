"""One list of entries out of four kinds, within a budget.

Uni-grams and synsets are taken as they are. Pairs of words fill the room that is left, those of the
highest PMI first, then titles, the most viewed first: the thresholds of these two are what MetaCLIP
estimated from the budget. The list is in the order uni-grams, pairs, titles, synsets, each kind
without what an earlier one holds.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What one kind offers.

    Attributes:
        entries: best first, without repetition but for synsets.
        found: how many reached the threshold; more than `entries` where only the best were kept.
        threshold: in words.
    """

    source: str
    threshold: str
    entries: Sequence[str]
    found: int


@dataclass(frozen=True, kw_only=True)
class SourceCounts:
    """What became of one kind: found = unusable + duplicates + cut + kept.

    Attributes:
        unusable: single punctuation marks.
        duplicates: repetitions, and entries of an earlier kind.
        cut: beyond the budget.
    """

    source: str
    threshold: str
    found: int
    unusable: int
    duplicates: int
    cut: int
    kept: int


def within_budget(
    unigrams: Candidates, bigrams: Candidates, titles: Candidates, synsets: Candidates, budget: int
) -> tuple[list[str], list[SourceCounts]]:
    """The entries in order, and the counts of the four kinds in the same order.

    Raises:
        ValueError: uni-grams and synsets alone are more than the budget.
    """
    certain = set(filter(_usable, [*unigrams.entries, *synsets.entries]))
    if len(certain) > budget:
        raise ValueError(
            f"--budget {budget:,}: uni-grams and synsets alone are {len(certain):,} entries: raise "
            "it, or --min-unigram-count"
        )
    room = budget - len(certain)
    entries: dict[str, None] = {}
    counts = []
    for kind in (unigrams, bigrams, titles, synsets):
        usable = list(filter(_usable, kind.entries))
        chosen, walked = _fitting(usable, entries, certain, room)
        room -= sum(entry not in certain for entry in chosen)
        entries.update(dict.fromkeys(chosen))
        unusable = len(kind.entries) - len(usable)
        counts.append(
            SourceCounts(
                source=kind.source,
                threshold=kind.threshold,
                found=kind.found,
                unusable=unusable,
                duplicates=walked - len(chosen),
                cut=kind.found - unusable - walked,
                kept=len(chosen),
            )
        )
    return list(entries), counts


def _usable(entry: str) -> bool:
    # A mark alone would match almost every caption.
    return entry not in string.punctuation


def _fitting(
    candidates: Iterable[str], earlier: dict[str, None], certain: set[str], room: int
) -> tuple[list[str], int]:
    """The new ones up to the first that finds no room, and how many were looked at."""
    chosen: dict[str, None] = {}
    walked = 0
    for entry in candidates:
        if entry not in earlier and entry not in chosen:
            if entry not in certain:
                if room == 0:
                    break
                room -= 1
            chosen[entry] = None
        walked += 1
    return list(chosen), walked

"""Which records of a source a mixture takes, and how often.

N% is ceil(N * records / 100) records, as in LLaVA-NeXT. Random choices come from a seed, so that
every machine makes the same; LLaVA's are unseeded.
"""

from __future__ import annotations

import hashlib
import math
import re
from typing import Any

import numpy as np

_MOST_PASSES = 2**31
_STRATEGY = re.compile(r"(first|end|random):([0-9]{1,18})(%?)")


def taken_records(records: int, strategy: Any, where: str) -> int:
    """How many of so many records a strategy takes.

    Raises:
        ValueError: an unknown strategy; more records than there are; none.
    """
    check_strategy(strategy, where)
    if strategy == "all":
        return records
    match = _STRATEGY.fullmatch(str(strategy))
    assert match is not None
    number, percent = int(match[2]), match[3]
    count = math.ceil(number * records / 100) if percent else number
    if not 0 < count <= records:
        raise ValueError(
            f"{where}: sampling_strategy {strategy!r} takes {count} of {records} records"
        )
    return count


def check_strategy(strategy: Any, where: str) -> None:
    """Raise ValueError for a strategy of no known kind."""
    if strategy != "all" and _STRATEGY.fullmatch(str(strategy)) is None:
        raise ValueError(
            f"{where}: sampling_strategy {strategy!r:.60}: expected all, first:N, end:N or "
            "random:N, N a number of records or a percentage such as 10%"
        )


def chosen_counts(records: int, strategy: Any, seed: int, where: str) -> np.ndarray:
    """int64 [records], 1 for each record that a strategy takes.

    Raises:
        ValueError: as `taken_records`.
    """
    counts = np.zeros(records, dtype=np.int64)
    count = taken_records(records, strategy, where)
    kind = str(strategy).partition(":")[0]
    if kind in ("all", "first"):
        counts[:count] = 1
    elif kind == "end":
        counts[records - count :] = 1
    else:
        counts[drawn(records, count, seed)] = 1
    return counts


def weighted_number(records: int, weight: Any, where: str) -> int:
    """How many records a weight makes of so many.

    Raises:
        ValueError: a weight that is no number above 0.
    """
    whole, extra = _passes(records, weight, where)
    return whole * records + extra


def weighted_counts(
    counts: np.ndarray, weight: Any, seed: int, where: str, name: str
) -> np.ndarray:
    """Counts times a weight, whose fraction is a random share of the chosen records."""
    chosen = np.flatnonzero(counts)
    whole, extra = _passes(len(chosen), weight, where)
    result = counts * whole
    if extra:
        result[chosen[drawn(len(chosen), extra, seed_of(seed, -1, name))]] += 1
    return result


def check_weight(weight: Any, where: str) -> None:
    """Raise ValueError for a weight that is no number of passes."""
    is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not is_number or not 0 < weight < _MOST_PASSES:
        raise ValueError(
            f"{where}: weight {weight!r:.60}: expected a number above 0 and below {_MOST_PASSES:,}"
        )


def _passes(records: int, weight: Any, where: str) -> tuple[int, int]:
    """Whole passes over so many records, and the records of the rest."""
    check_weight(weight, where)
    whole = math.floor(weight)
    return whole, round((weight - whole) * records)


def drawn(records: int, count: int, seed: int) -> np.ndarray:
    """Numbers below `records` of `count` that are chosen at random: int64 [count]."""
    # The raw bits of a generator are the same in every version of numpy, its choices are not.
    order = np.argsort(np.random.PCG64(seed).random_raw(records), kind="stable")
    return order[:count]


def seed_of(seed: int, number: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}\n{number}\n{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little")

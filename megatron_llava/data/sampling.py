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

_STRATEGY = re.compile(r"(first|end|random):([0-9]+)(%?)")


def chosen_counts(records: int, strategy: Any, seed: int, where: str) -> np.ndarray:
    """int64 [records], 1 for each record that a strategy takes.

    Raises:
        ValueError: an unknown strategy; more records than there are; none.
    """
    counts = np.zeros(records, dtype=np.int64)
    if strategy == "all":
        return counts + 1
    match = _STRATEGY.fullmatch(str(strategy))
    if match is None:
        raise ValueError(
            f"{where}: sampling_strategy {strategy!r}: expected all, first:N, end:N or random:N, "
            "N a number of records or a percentage such as 10%"
        )
    kind, number, percent = match[1], int(match[2]), match[3]
    count = math.ceil(number * records / 100) if percent else number
    if not 0 < count <= records:
        raise ValueError(
            f"{where}: sampling_strategy {strategy!r} takes {count} of {records} records"
        )
    if kind == "first":
        counts[:count] = 1
    elif kind == "end":
        counts[records - count :] = 1
    else:
        counts[_drawn(records, count, seed)] = 1
    return counts


def weighted_counts(
    counts: np.ndarray, weight: Any, seed: int, where: str, name: str
) -> np.ndarray:
    """Counts times a weight, whose fraction is a random share of the chosen records."""
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight > 0:
        raise ValueError(f"{where}: weight {weight!r}: expected a number above 0")
    whole = math.floor(weight)
    result = counts * whole
    chosen = np.flatnonzero(counts)
    extra = round((weight - whole) * len(chosen))
    if extra:
        result[chosen[_drawn(len(chosen), extra, seed_of(seed, -1, name))]] += 1
    return result


def _drawn(records: int, count: int, seed: int) -> np.ndarray:
    # The raw bits of a generator are the same in every version of numpy, its choices are not.
    order = np.argsort(np.random.PCG64(seed).random_raw(records), kind="stable")
    return order[:count]


def seed_of(seed: int, number: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}\n{number}\n{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little")

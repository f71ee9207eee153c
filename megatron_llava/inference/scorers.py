"""Scores of generated answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable


def exact_match(answer: str, truth: str) -> bool:
    """Equal after trimming and without regard to letter case."""
    return answer.strip().lower() == truth.strip().lower()


def accuracy_by_kind(rows: Iterable[tuple[str, bool]]) -> dict[str, float]:
    """Share of right answers per kind of question, in [0, 1], and over all under "overall".

    Args:
        rows: (kind, right) of each question.
    """
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for kind, right in rows:
        for name in (kind, "overall"):
            counts[name][0] += int(right)
            counts[name][1] += 1
    return {name: right / total for name, (right, total) in counts.items()}

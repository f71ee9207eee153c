"""Scores over questions that are answered with yes or no: POPE and MME."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from megatron_llava.inference.answered import Answered

_BEGINNING = re.compile(r"\s*(yes|no)\b", re.IGNORECASE)


def pope(rows: Sequence[Answered]) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of "yes", and its share (Li et al. 2023).

    An answer whose first sentence has "no" or "not" among its words is a no, any other a yes.
    """
    found = [not _denies(row.answer) for row in rows]
    expected = [not _denies(row.truths[0]) for row in rows]
    both = sum(a and b for a, b in zip(found, expected, strict=True))
    equal = sum(a == b for a, b in zip(found, expected, strict=True))
    precision = both / sum(found) if any(found) else 0.0
    recall = both / sum(expected) if any(expected) else 0.0
    harmonic = 2 * precision * recall / (precision + recall) if both else 0.0
    return {
        "accuracy": equal / len(rows),
        "precision": precision,
        "recall": recall,
        "F1": harmonic,
        "yes": sum(found) / len(rows),
    }


def _denies(text: str) -> bool:
    words = re.findall(r"[a-z']+", text.split(".")[0].lower())
    return "no" in words or "not" in words


def mme(rows: Sequence[Answered]) -> dict[str, float]:
    """Accuracy, accuracy+ and MME's score (Fu et al. 2023).

    accuracy+ is the share of images of which every question of a kind is answered right; the score
    is 100 * (accuracy + accuracy+) of each kind, 0 to 200, and their sum over several. An answer
    that begins with neither yes nor no is wrong.
    """
    images: dict[tuple[str, str | None], list[bool]] = defaultdict(list)
    for row in rows:
        images[row.kind, row.image].append(_begins_as(row.answer, row.truths[0]))
    score = 0.0
    for kind in {kind for kind, _ in images}:
        of_kind = [right for (name, _), right in images.items() if name == kind]
        score += 100 * (_mean([one for right in of_kind for one in right]) + _all(of_kind))
    every = list(images.values())
    return {
        "accuracy": _mean([one for right in every for one in right]),
        "accuracy+": _all(every),
        "score": score,
    }


def check_yes_or_no(truth: str, source: str) -> None:
    """Raise ValueError where a truth is neither, which POPE and MME cannot score."""
    if _BEGINNING.match(truth) is None:
        raise ValueError(
            f"{source}: its answer {truth!r:.60} begins with neither yes nor no, which --scorer "
            "pope and mme compare: give another --scorer, or leave it out"
        )


def _begins_as(answer: str, truth: str) -> bool:
    expected, found = _BEGINNING.match(truth), _BEGINNING.match(answer)
    assert expected is not None, "check_yes_or_no has been called"
    return found is not None and found[1].lower() == expected[1].lower()


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def _all(images: Sequence[Sequence[bool]]) -> float:
    return _mean([all(right) for right in images])

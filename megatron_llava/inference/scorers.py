"""Scores of generated answers, over all questions and by their kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from megatron_llava.inference.answer_match import (
    anls,
    any_exact_match,
    choice_match,
    relaxed_match,
    vqa_accuracy,
)
from megatron_llava.inference.answered import Answered
from megatron_llava.inference.yes_no import mme, pope

Scorer = Callable[[Sequence[Answered]], dict[str, float]]
"""Measures of at least one question: shares in [0, 1], and "score" in points."""


def _mean(name: str, match: Callable[[str, Sequence[str]], float]) -> Scorer:
    def score(rows: Sequence[Answered]) -> dict[str, float]:
        return {name: sum(match(row.answer, row.truths) for row in rows) / len(rows)}

    return score


SCORERS: dict[str, Scorer] = {
    "exact_match": _mean("exact match", any_exact_match),
    "vqa": _mean("accuracy", vqa_accuracy),
    "anls": _mean("ANLS", anls),
    "relaxed": _mean("relaxed accuracy", relaxed_match),
    "choice": _mean("accuracy", choice_match),
    "pope": pope,
    "mme": mme,
}
"""By the value of `--scorer`: VQAv2 and TextVQA; DocVQA and InfoVQA; ChartQA; options by letter."""

YES_NO_SCORERS = ("pope", "mme")


def scores_by_kind(rows: Iterable[Answered], scorer: Scorer) -> dict[str, dict[str, float]]:
    """Measures of each kind of question, in the order of their names, and of all: "overall"."""
    kinds: dict[str, list[Answered]] = defaultdict(list)
    for row in rows:
        kinds[row.kind].append(row)
    of_all = [row for of_kind in kinds.values() for row in of_kind]
    named = {kind: scorer(kinds[kind]) for kind in sorted(kinds)}
    return named | ({"overall": scorer(of_all)} if of_all else {})

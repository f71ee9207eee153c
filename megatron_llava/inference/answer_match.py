"""How right one answer is, from 0 to 1, by the rules of the benchmarks.

The rules are those that the benchmarks' own evaluation follows: VQAv2 and TextVQA (`vqa_accuracy`),
DocVQA and InfoVQA (`anls`), ChartQA (`relaxed_match`), and options by letter (`choice_match`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from megatron_llava.inference.vqa_words import vqa_words

# "B", "b", "B." or "(B) two cats"; "A cat" names no option.
_LETTER = re.compile(r"\(?([A-Z])(?:[).:,]|$)|([a-z])[).]?$")
_SAID = re.compile(r"\b(?:answer|option) is:? \(?([A-Z])\b")


def exact_match(answer: str, truth: str) -> bool:
    """Equal after trimming and without regard to letter case."""
    return answer.strip().lower() == truth.strip().lower()


def any_exact_match(answer: str, truths: Sequence[str]) -> float:
    """1 where one of the truths is the answer."""
    return float(any(exact_match(answer, truth) for truth in truths))


def vqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """Agreement with the people who answered: three are enough for 1.

    Each of them is left out in turn, and min(1, equal answers among the others / 3) is averaged
    (Antol et al. 2015; VQAv2 has ten people). One truth alone is compared. Answers are equal
    where their `vqa_words` are.
    """
    found = vqa_words(answer)
    equal = [vqa_words(truth) == found for truth in truths]
    if len(equal) == 1:
        return float(equal[0])
    shares = [min(1.0, (sum(equal) - one) / 3) for one in equal]
    return sum(shares) / len(shares)


def anls(answer: str, truths: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one answer (Biten et al. 2019).

    The greatest of 1 - (edits / length of the longer text) over the truths, 0 where it is below
    0.5; without regard to case and repeated spaces.
    """
    found = " ".join(answer.lower().split())
    best = 0.0
    for truth in truths:
        expected = " ".join(truth.lower().split())
        longer = max(len(found), len(expected))
        similarity = 1 - _edits(found, expected) / longer if longer else 1.0
        best = max(best, similarity)
    return best if best >= 0.5 else 0.0


def _edits(left: str, right: str) -> int:
    """Insertions, deletions and replacements that make one text of the other."""
    row = list(range(len(right) + 1))
    for number, left_sign in enumerate(left, start=1):
        diagonal, row[0] = row[0], number
        for place, right_sign in enumerate(right, start=1):
            replaced = diagonal + (left_sign != right_sign)
            diagonal = row[place]
            row[place] = min(replaced, row[place] + 1, row[place - 1] + 1)
    return row[-1]


def relaxed_match(answer: str, truths: Sequence[str]) -> float:
    """1 where a number is within 5 % of a truth that is one, or a text equal to one.

    A truth of zero has to be met exactly (Methani et al. 2020, as ChartQA uses it).
    """
    return float(any(_relaxed(answer.strip(), truth.strip()) for truth in truths))


def _relaxed(answer: str, truth: str) -> bool:
    found, expected = _number(answer), _number(truth)
    if found is not None and expected:
        return abs(found - expected) / abs(expected) <= 0.05
    return answer.lower() == truth.lower()


def _number(text: str) -> float | None:
    percent = text.endswith("%")
    try:
        return float(text.rstrip("%")) / (100 if percent else 1)
    except ValueError:
        return None


def choice_match(answer: str, truths: Sequence[str]) -> float:
    """1 where the option that an answer names is a truth's.

    It is the letter that an answer begins with, as in "B" or "(B) two cats", or that it says the
    answer is.
    """
    letters = {_letter(truth) for truth in truths}
    found = _letter(answer)
    return float(found is not None and found in letters)


def _letter(text: str) -> str | None:
    match = _LETTER.match(text.strip())
    if match:
        return (match[1] or match[2]).upper()
    said = _SAID.search(text)
    return said[1] if said else None

"""The answers that a question may be given."""

from typing import Any


def truths_of(answers: Any, answer: str, source: str) -> tuple[str, ...]:
    """What a question may be answered with: the record's ``answers``, or the one of its
    conversation."""
    if answers is None:
        return (answer,)
    if not (isinstance(answers, list) and answers and all(isinstance(a, str) for a in answers)):
        raise ValueError(f"{source}: answers is {answers!r:.60}; give a list of texts or drop it")
    return tuple(answers)

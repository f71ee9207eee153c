"""The question of a record, and the answers that it may be given."""

from typing import Any

from megatron_llava.data.records import Record


def first_question(record: Record, source: str) -> int:
    """Which turn is the first human one; ValueError where no answer follows it."""
    roles = [turn.role for turn in record.turns]
    human = roles.index("human") if "human" in roles else len(roles)
    if roles[human + 1 : human + 2] != ["gpt"]:
        raise ValueError(f"{source}: no question with an answer after it")
    return human


def truths_of(answers: Any, answer: str, source: str) -> tuple[str, ...]:
    """What a question may be answered with: the record's ``answers``, or the one of its
    conversation."""
    if answers is None:
        return (answer,)
    if not (isinstance(answers, list) and answers and all(isinstance(a, str) for a in answers)):
        raise ValueError(f"{source}: answers is {answers!r:.60}; give a list of texts or drop it")
    return tuple(answers)

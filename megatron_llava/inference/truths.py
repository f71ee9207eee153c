"""The question of a record, and the answers that it may be given."""

from collections.abc import Sequence
from typing import Any

from megatron_llava.data.records import Record
from megatron_llava.text.constants import IMAGE_PLACEHOLDER
from megatron_llava.text.templates import Turn


def first_question(record: Record, source: str) -> int:
    """Which turn is the first human one; ValueError where no answer follows it."""
    roles = [turn.role for turn in record.turns]
    human = roles.index("human") if "human" in roles else len(roles)
    if roles[human + 1 : human + 2] != ["gpt"]:
        raise ValueError(f"{source}: no question with an answer after it")
    return human


def images_asked_about(turns: Sequence[Turn], human: int, images: int, source: str) -> int:
    """Images of a record that stand in its turns up to the question.

    Raises:
        ValueError: the record does not place each of its images once.
    """
    placed = [turn.text.count(IMAGE_PLACEHOLDER) * (turn.role == "human") for turn in turns]
    if sum(placed) != images:
        raise ValueError(
            f"{source}: {sum(placed)} {IMAGE_PLACEHOLDER} placeholders in the conversation, but "
            f"{images} images; write one placeholder per image"
        )
    return sum(placed[: human + 1])


def truths_of(answers: Any, answer: str, source: str) -> tuple[str, ...]:
    """What a question may be answered with: the record's ``answers``, or the one of its
    conversation."""
    if answers is None:
        return (answer,)
    if not (isinstance(answers, list) and answers and all(isinstance(a, str) for a in answers)):
        raise ValueError(f"{source}: answers is {answers!r:.60}; give a list of texts or drop it")
    return tuple(answers)

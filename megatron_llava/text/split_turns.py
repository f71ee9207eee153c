"""Long conversations cut between turns, each part with the images that it speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from megatron_llava.text.constants import IMAGE_PLACEHOLDER
from megatron_llava.text.templates import Turn


class Part(NamedTuple):
    """Consecutive questions and answers of a conversation.

    Attributes:
        turns: the system turn, if there is one, then those of the part.
        images: which of the conversation's images its placeholders stand for, in order.
        first, last: its turns, counted from 1, the system turn left out.
    """

    turns: tuple[Turn, ...]
    images: tuple[int, ...]
    first: int
    last: int


def split_turns(turns: Sequence[Turn], most_questions: int) -> list[Part]:
    """Parts of at most so many questions, one where there are no more.

    Later parts begin with the images of the first question, in front and on lines of their own:
    that is where conversations have the images that all of them is about. Other images stay where
    they are. Turns that do not alternate are for `encode_conversation` to refuse, and stay in one
    part.

    Args:
        turns: as a record has them; a leading answer, which is not trained on, counts as no turn of
            a part but stays before the first.
        most_questions: at least 1.
    """
    head = [turn for turn in turns[:1] if turn.role == "system"]
    dialogue = list(turns[len(head) :])
    lead = dialogue[:1] if dialogue and dialogue[0].role == "gpt" else []
    rest = dialogue[len(lead) :]
    alternating = all(turn.role == ("human", "gpt")[n % 2] for n, turn in enumerate(rest))
    images_before = [0]
    for turn in turns:
        images_before.append(images_before[-1] + turn.text.count(IMAGE_PLACEHOLDER))
    if len(rest) <= 2 * most_questions or not alternating or len(rest) % 2:
        return [Part(tuple(turns), tuple(range(images_before[-1])), 1, len(dialogue))]
    of_system, offset = range(images_before[len(head)]), len(head) + len(lead)
    of_first = range(images_before[offset], images_before[offset + 1])
    parts = []
    for start in range(0, len(rest), 2 * most_questions):
        taken = rest[start : start + 2 * most_questions]
        end = start + len(taken)
        own = range(images_before[offset + start], images_before[offset + end])
        if start == 0:
            before = range(images_before[len(head)], images_before[offset])
            images = (*of_system, *before, *own)
            taken = [*lead, *taken]
        else:
            images = (*of_system, *of_first, *own)
            text = f"{IMAGE_PLACEHOLDER}\n" * len(of_first) + taken[0].text
            taken[0] = taken[0]._replace(text=text)
        first = len(lead) + start + 1 if start else 1
        parts.append(Part((*head, *taken), images, first, len(lead) + end))
    return parts

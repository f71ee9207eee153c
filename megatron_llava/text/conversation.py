"""A conversation's turns, checked, to token ids and the mask of its trained tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_llava.text.constants import IMAGE_PLACEHOLDER
from megatron_llava.text.pieces import Encoded, Pieces, cut, encode
from megatron_llava.text.templates import Segment, Template, Turn
from megatron_llava.text.tokenizer import Tokenizer

_ROLES = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "system": "system",
}


def turns_from_record(conversations: Any, source: str) -> list[Turn]:
    """Read LLaVA's [{"from", "value"}, ...] or the [{"role", "content"}, ...] of chat formats.

    Raises:
        ValueError: naming `source` and the turn, for another shape or an unknown role.
    """
    if not isinstance(conversations, list):
        raise ValueError(f"{source}: conversations is {type(conversations).__name__}, not a list")
    turns = []
    for number, item in enumerate(conversations, start=1):
        if not isinstance(item, Mapping):
            raise ValueError(f"{source}: turn {number} is {type(item).__name__}, not an object")
        role = item.get("from", item.get("role"))
        text = item.get("value", item.get("content"))
        if not isinstance(role, str) or not isinstance(text, str):
            raise ValueError(
                f"{source}: turn {number} needs strings 'from' and 'value' (or 'role' and "
                f"'content'), it has the keys {sorted(map(str, item))}"
            )
        turns.append(Turn(_known_role(role, number, source), text))
    return turns


def encode_conversation(
    turns: Sequence[Turn],
    num_images: int,
    tokenizer: Tokenizer,
    template: Template,
    source: str,
    *,
    llava_labels: bool = False,
) -> Encoded:
    """Token ids and label mask of one training conversation.

    Args:
        turns: a system turn (optional; replaces the template's prompt), then human and gpt turns
            in alternation. A leading gpt turn is dropped, as in LLaVA.
        num_images: images of the record; must equal the `<image>` placeholders in the kept turns.
        source: names the record in errors, such as "train.jsonl:17".
        llava_labels: supervise what LLaVA-NeXT supervises; see templates.py.

    Raises:
        ValueError: one line naming `source`, for turns or placeholders that break these rules.
    """
    pieces = cut_conversation(
        turns, num_images, tokenizer, template, source, llava_labels=llava_labels
    )
    return encode_conversations([pieces], tokenizer, template, llava_labels=llava_labels)[0]


def cut_conversation(
    turns: Sequence[Turn],
    num_images: int,
    tokenizer: Tokenizer,
    template: Template,
    source: str,
    *,
    llava_labels: bool = False,
) -> Pieces:
    """The first half of `encode_conversation`, which finds all that may be wrong with a record."""
    system, dialogue = _check_turns(turns, num_images, template, source)
    if not any(turn.role == "gpt" for turn in dialogue):
        raise ValueError(f"{source}: the conversation has no answer (gpt turn) to train on")
    segments = _rendered(template, dialogue, system, source, llava_labels=llava_labels)
    return _cut(segments, tokenizer, source)


def encode_conversations(
    conversations: Sequence[Pieces],
    tokenizer: Tokenizer,
    template: Template,
    *,
    llava_labels: bool = False,
) -> list[Encoded]:
    """The second half of `encode_conversation`, of several at once."""
    encoded = encode(conversations, tokenizer, template)
    for token in template.llava_tokens if llava_labels else ():
        (token_id,) = tokenizer.encode(token)
        for conversation in encoded:
            conversation.label_mask[conversation.token_ids == token_id] = 1
    return encoded


def encode_prompt(
    turns: Sequence[Turn], num_images: int, tokenizer: Tokenizer, template: Template, source: str
) -> npt.NDArray[np.int32]:
    """Token ids int32 [n] up to where the model's answer begins; the last turn must be human.

    Arguments and errors are those of `encode_conversation`.
    """
    system, dialogue = _check_turns(turns, num_images, template, source)
    if dialogue[-1].role != "human":
        raise ValueError(f"{source}: the last turn of a prompt must be human, it is gpt")
    segments = _rendered(template, dialogue, system, source, add_generation_prompt=True)
    return encode([_cut(segments, tokenizer, source)], tokenizer, template)[0].token_ids


def place_image(text: str) -> str:
    """LLaVA's rule: a single placeholder inside a human text moves to the front, on its own line.

    A text that begins with it, has none, or has several is returned as it is.
    Source: preprocess_multimodal in LLaVA-NeXT's train.py.
    """
    if text.count(IMAGE_PLACEHOLDER) != 1 or text.startswith(IMAGE_PLACEHOLDER):
        return text
    rest = text.replace(IMAGE_PLACEHOLDER, "").strip()
    return f"{IMAGE_PLACEHOLDER}\n{rest}".strip()


def _known_role(role: str, number: int, source: str) -> str:
    if role not in _ROLES:
        raise ValueError(f"{source}: turn {number} is from '{role}', not one of {sorted(_ROLES)}")
    return _ROLES[role]


def _check_turns(
    turns: Sequence[Turn], num_images: int, template: Template, source: str
) -> tuple[str | None, list[Turn]]:
    """The system prompt, if the record has one, and the human and gpt turns to render."""
    numbered = [(i, _known_role(t.role, i, source), t.text) for i, t in enumerate(turns, start=1)]
    system = None
    if numbered and numbered[0][1] == "system":
        system = numbered.pop(0)[2]
    if numbered and numbered[0][1] == "gpt":
        numbered.pop(0)
    if not numbered:
        raise ValueError(f"{source}: the conversation has no human turn")
    dialogue = []
    for (number, role, text), expected in zip(numbered, cycle(("human", "gpt")), strict=False):
        if role != expected:
            raise ValueError(f"{source}: turn {number} is {role} where {expected} was expected")
        if role == "gpt" and not text.strip():
            raise ValueError(f"{source}: turn {number} is an empty answer")
        dialogue.append(Turn(role, place_image(text) if role == "human" else text))
    if template.images_only and len(dialogue) > 2:
        raise ValueError(
            f"{source}: {len(dialogue)} turns, but --conversation-template {template.name} takes "
            "one question and one answer"
        )
    texts = [system or "", *(turn.text for turn in dialogue)]
    found = sum(text.count(IMAGE_PLACEHOLDER) for text in texts)
    if found != num_images:
        raise ValueError(
            f"{source}: {found} {IMAGE_PLACEHOLDER} placeholders in the conversation, but "
            f"{num_images} images; write one placeholder per image"
        )
    return system, dialogue


def _rendered(
    template: Template, dialogue: Sequence[Turn], system: str | None, source: str, **how: bool
) -> list[Segment]:
    try:
        return template.segments(dialogue, system, **how)
    except ValueError as error:  # a tokenizer's own template raises what it likes
        raise ValueError(f"{source}: {error}") from error


def _cut(segments: Sequence[Segment], tokenizer: Tokenizer, source: str) -> Pieces:
    try:
        return cut(segments, tokenizer)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error

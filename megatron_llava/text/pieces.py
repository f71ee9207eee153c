"""Rendered conversations to token ids and the mask of the trained tokens.

Every segment of a template is cut at `<image>`, and each piece is encoded by itself. So no token
spans an image or the start or end of an answer, and the ids of a prompt are always the first ids of
the whole conversation. A piece that does not open the conversation is encoded as a continuation of
the fixed text before it: a tokenizer that puts a space before every text (SentencePiece, Llama)
then does not put a second one before an answer.

The ids equal those of the whole string in one go, except where a token would span a border: for
example an answer that begins with a newline after qwen's header, which itself ends in one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from megatron_llava.text.constants import IMAGE_PLACEHOLDER, IMAGE_TOKEN_INDEX
from megatron_llava.text.templates import Segment, Template
from megatron_llava.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Encoded:
    """A tokenised conversation, images not yet expanded.

    Attributes:
        token_ids: int32 [n], IMAGE_TOKEN_INDEX once per image.
        label_mask: uint8 [n], 1 where the token itself is trained on (not yet shifted).
    """

    token_ids: npt.NDArray[np.int32]
    label_mask: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pieces:
    """A conversation cut into the texts that are encoded by themselves.

    Attributes:
        texts: (fixed text before it, text) of each piece, in order.
        order: None for an image, else whether the next piece is trained.
    """

    texts: list[tuple[str, str]] = field(default_factory=list)
    order: list[bool | None] = field(default_factory=list)


def cut(segments: Sequence[Segment], tokenizer: Tokenizer) -> Pieces:
    """The pieces of a rendered conversation.

    Raises:
        ValueError: a text that is no Unicode text (half of a surrogate pair), which JSON can write.
    """
    # A tokenizer that knows the placeholder (HF processors add it) goes on after it as in one
    # string; for any other a new text begins there, as in LLaVA.
    knows_image = tokenizer.token_to_id(IMAGE_PLACEHOLDER) is not None
    after_image = IMAGE_PLACEHOLDER if knows_image else ""
    before = ""
    pieces = Pieces()
    for segment in segments:
        check_unicode(segment.text)
        for index, piece in enumerate(segment.text.split(IMAGE_PLACEHOLDER)):
            if index:
                pieces.order.append(None)
                before = after_image
            if piece:
                pieces.order.append(segment.supervised)
                pieces.texts.append((before, piece))
                before = segment.end
    return pieces


def check_unicode(text: str) -> None:
    """Raise ValueError for half of a surrogate pair, which JSON can write."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"not valid Unicode: half of a surrogate pair, {text[error.start]!a}, in "
            f"{text[max(error.start - 10, 0) : error.end + 10]!a}"
        ) from None


def encode(
    conversations: Sequence[Pieces], tokenizer: Tokenizer, template: Template
) -> list[Encoded]:
    """Token ids and label mask of each conversation; many at once take less time."""
    pieces = [piece for conversation in conversations for piece in conversation.texts]
    encoded = iter(_encode_after(pieces, tokenizer))
    return [_joined(conversation, encoded, tokenizer, template) for conversation in conversations]


def _joined(
    pieces: Pieces, encoded: Iterator[list[int]], tokenizer: Tokenizer, template: Template
) -> Encoded:
    ids: list[int] = []
    mask = bytearray()
    if template.add_bos and tokenizer.bos_id is not None:
        ids.append(tokenizer.bos_id)
        mask.append(0)
    for trained in pieces.order:
        piece_ids = [IMAGE_TOKEN_INDEX] if trained is None else next(encoded)
        ids += piece_ids
        mask += (b"\1" if trained else b"\0") * len(piece_ids)
    return Encoded(np.array(ids, dtype=np.int32), np.frombuffer(mask, dtype=np.uint8))


@lru_cache(maxsize=64)
def _fixed(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a template's own text, which every conversation has."""
    return tokenizer.encode(text)


def _encode_after(pieces: Sequence[tuple[str, str]], tokenizer: Tokenizer) -> list[list[int]]:
    """Ids of each (before, text)'s `text` where it stands behind `before`.

    Where a token would span the two, the ids of `text` alone: the border must stay one.
    """
    result = tokenizer.encode_all([before + text for before, text in pieces])
    for number, (before, text) in enumerate(pieces):
        if before:
            head = _fixed(tokenizer, before)
            whole = result[number]
            continues = whole[: len(head)] == head
            result[number] = whole[len(head) :] if continues else tokenizer.encode(text)
    return result

"""Raw records checked, read and tokenised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from megatron_llava.data.preprocess_settings import PreprocessSettings
from megatron_llava.data.quality import Quality
from megatron_llava.data.records import parse_record
from megatron_llava.data.visuals import ReadRecord, read_visuals
from megatron_llava.text.conversation import cut_conversation, encode_conversations
from megatron_llava.text.known_templates import get_template
from megatron_llava.text.pieces import Pieces
from megatron_llava.text.placement import front_share, place_images
from megatron_llava.text.templates import Template
from megatron_llava.text.tokenizer import Tokenizer, load_tokenizer

Chunk = Sequence[tuple[str, Any]]
"""(source, raw record) of some records."""


@dataclass(frozen=True, kw_only=True)
class EncodedRecord:
    """One record ready to be stored: see `StoreWriter.add`."""

    token_ids: np.ndarray
    label_mask: np.ndarray
    images: list[bytes]
    sizes: list[tuple[int, int]]
    source: str


class LeftOut(NamedTuple):
    """A record that a quality filter does not want."""

    flag: str


EncodedResult = EncodedRecord | LeftOut | str
"""A str is the message of a bad record."""


class _Checked(NamedTuple):
    """A record that can be stored, but for its tokens."""

    source: str
    read: ReadRecord
    pieces: Pieces


def load_text(settings: PreprocessSettings) -> tuple[Tokenizer, Template]:
    """The tokenizer and the template, which fit together.

    Raises:
        ValueError: they do not, or one cannot be used.
    """
    if settings.conversation_template != "hf":
        get_template(settings.conversation_template)
    tokenizer = load_tokenizer(settings.tokenizer_model, settings.tokenizer_type)
    template = get_template(settings.conversation_template, tokenizer)
    template.check_tokenizer(tokenizer)
    return tokenizer, template


class ChunkEncoder:
    """Encodes raw records, some at once, with a tokenizer of its own.

    Raises:
        ValueError: a setting that cannot be used.
    """

    def __init__(self, settings: PreprocessSettings) -> None:
        self._tokenizer, self._template = load_text(settings)
        self._visuals = settings.visuals()
        self._llava_labels = settings.label_compat == "llava"
        self._share_in_front = front_share(settings.multi_image_placement)
        self._seed = settings.seed
        self._quality = Quality(settings)

    def __call__(self, chunk: Chunk) -> list[EncodedResult]:
        checked = [self._check(raw, source) for source, raw in chunk]
        encoded = iter(
            encode_conversations(
                [record.pieces for record in checked if isinstance(record, _Checked)],
                self._tokenizer,
                self._template,
                llava_labels=self._llava_labels,
            )
        )
        results: list[EncodedResult] = []
        for record in checked:
            if not isinstance(record, _Checked):
                results.append(record)
                continue
            text = next(encoded)
            results.append(
                EncodedRecord(
                    token_ids=text.token_ids,
                    label_mask=text.label_mask,
                    images=record.read.items,
                    sizes=record.read.sizes,
                    source=record.source,
                )
            )
        return results

    def _check(self, raw: Any, source: str) -> _Checked | LeftOut | str:
        try:
            record = parse_record(raw, source)
            read = read_visuals(record, self._visuals)
            if flag := self._quality.reason_against(record, read):
                return LeftOut(flag)
            turns = read.turns
            if not record.videos:
                turns = place_images(turns, self._share_in_front, self._seed)
            pieces = cut_conversation(
                turns,
                len(read.items),
                self._tokenizer,
                self._template,
                source,
                llava_labels=self._llava_labels,
            )
        except ValueError as error:
            return str(error)
        return _Checked(source, read, pieces)

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
from megatron_llava.text.constants import IMAGE_PLACEHOLDER
from megatron_llava.text.conversation import cut_conversation, encode_conversations
from megatron_llava.text.known_templates import OF_THE_TOKENIZER, get_template
from megatron_llava.text.pieces import Encoded, Pieces
from megatron_llava.text.placement import front_share, place_images
from megatron_llava.text.split_turns import Part, split_turns
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


EncodedResult = list[EncodedRecord] | LeftOut | str
"""The samples of a record, several where it is split; a str is the message of a bad one."""


class _Checked(NamedTuple):
    """A sample that can be stored, but for its tokens."""

    source: str
    read: ReadRecord
    pieces: Pieces


def load_text(settings: PreprocessSettings) -> tuple[Tokenizer, Template]:
    """The tokenizer and the template, which fit together.

    Raises:
        ValueError: they do not, or one cannot be used.
    """
    if settings.conversation_template not in OF_THE_TOKENIZER:
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
        self._split_turns = settings.split_turns

    def __call__(self, chunk: Chunk) -> list[EncodedResult]:
        checked = [self._check(raw, source) for source, raw in chunk]
        samples = [sample for record in checked if isinstance(record, list) for sample in record]
        encoded = encode_conversations(
            [sample.pieces for sample in samples],
            self._tokenizer,
            self._template,
            llava_labels=self._llava_labels,
        )
        made = iter(map(_encoded, samples, encoded))
        return [
            [next(made) for _ in record] if isinstance(record, list) else record
            for record in checked
        ]

    def _check(self, raw: Any, source: str) -> list[_Checked] | LeftOut | str:
        try:
            record = parse_record(raw, source)
            read = read_visuals(record, self._visuals)
            if flag := self._quality.reason_against(record, read):
                return LeftOut(flag)
            with_videos = bool(record.videos)
            return [
                self._cut(part, name, with_videos=with_videos)
                for name, part in self._parts(read, source)
            ]
        except ValueError as error:
            return str(error)

    def _parts(self, read: ReadRecord, source: str) -> list[tuple[str, ReadRecord]]:
        """What becomes a sample each, with its name: the whole, or parts by --split-turns."""
        # Placeholders that are not as many as the images are refused, of the whole record.
        if not self._split_turns or len(read.items) != _placeholders(read):
            return [(source, read)]
        parts = split_turns(read.turns, self._split_turns)
        if len(parts) == 1:
            return [(source, read)]
        return [(f"{source}, turns {p.first} to {p.last}", _part_of(read, p)) for p in parts]

    def _cut(self, read: ReadRecord, source: str, *, with_videos: bool) -> _Checked:
        turns = read.turns
        if not with_videos:
            turns = place_images(turns, self._share_in_front, self._seed)
        pieces = cut_conversation(
            turns,
            len(read.items),
            self._tokenizer,
            self._template,
            source,
            llava_labels=self._llava_labels,
        )
        return _Checked(source, read, pieces)


def _encoded(sample: _Checked, text: Encoded) -> EncodedRecord:
    return EncodedRecord(
        token_ids=text.token_ids,
        label_mask=text.label_mask,
        images=sample.read.items,
        sizes=sample.read.sizes,
        source=sample.source,
    )


def _placeholders(read: ReadRecord) -> int:
    return sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in read.turns)


def _part_of(read: ReadRecord, part: Part) -> ReadRecord:
    return ReadRecord(
        turns=part.turns,
        items=[read.items[number] for number in part.images],
        sizes=[read.sizes[number] for number in part.images],
    )

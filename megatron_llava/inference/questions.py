"""Held-out records as prompts with their true answers."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from megatron_llava.data.records import RecordFile, decoded_record, parse_record
from megatron_llava.data.row_plan import is_video
from megatron_llava.data.sample import Sample
from megatron_llava.data.stored_video import pack_frames
from megatron_llava.data.visuals import VisualSettings, read_visuals
from megatron_llava.inference.generate import prompt_sample
from megatron_llava.inference.truths import first_question, images_asked_about, truths_of
from megatron_llava.text.conversation import encode_prompt
from megatron_llava.text.placement import place_images
from megatron_llava.text.templates import Template
from megatron_llava.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Question:
    """The first question of a record, ready to be asked.

    Attributes:
        kind: the record's ``kind``; "question" where it has none.
        truths: the answers in the record's ``answers``; without them the one of its conversation.
        later: further questions of the record, which are not asked.
    """

    id: str
    kind: str
    images: tuple[str, ...]
    text: str
    truths: tuple[str, ...]
    later: int
    prompt: Sample


def read_questions(
    path: str | Path,
    visuals: VisualSettings,
    tokenizer: Tokenizer,
    template: Template,
    *,
    blank_images: bool = False,
    images_in_front: bool = False,
    share: tuple[int, int] = (0, 1),
) -> list[Question]:
    """Read LLaVA records; the first human turn is asked and the first answer is the truth.

    Args:
        visuals: where images and videos are, and which frames are taken.
        blank_images: replace every image (and frame) by a grey one of its size, to see what is
            guessed.
        images_in_front: move several images of a question in front of its words, as
            ``--multi-image-placement front`` does for training.
        share: (first, step) of the records that are read: every step-th one.

    Raises:
        ValueError: one line naming the record, the image or the video.
    """
    questions = []
    for source, raw in islice(RecordFile(path), share[0], None, share[1]):
        fields = decoded_record(raw, source)
        record = parse_record(fields, source)
        human = first_question(record, source)
        read = read_visuals(record, visuals)
        turns = read.turns[: human + 1]
        number = images_asked_about(read.turns, human, len(read.items), source)
        sizes = read.sizes[:number]
        images = [_grey(size) for size in sizes] if blank_images else read.items[:number]
        if images_in_front and not record.videos:
            turns = place_images(turns, 1.0, seed=0)
        token_ids = encode_prompt(turns, len(images), tokenizer, template, source)
        questions.append(
            Question(
                id=record.id,
                kind=str(fields.get("kind") or "question"),
                images=tuple(str(image) for image in (*record.images, *record.videos)),
                text=record.turns[human].text,
                truths=truths_of(fields.get("answers"), record.turns[human + 1].text, source),
                later=sum(turn.role == "human" for turn in record.turns[human + 1 :]),
                prompt=prompt_sample(token_ids, images, sizes, source),
            )
        )
    return questions


def _grey(size: tuple[int, int]) -> bytes:
    """A stored image, or video of so many frames, with nothing to see."""
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8) if is_video(size) else size, (128, 128, 128)).save(encoded, "PNG")
    return pack_frames([encoded.getvalue()] * size[0]) if is_video(size) else encoded.getvalue()

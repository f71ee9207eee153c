"""Questions about objects that are in an image and about as many that are not.

Those that are not are chosen as in POPE (Li et al. 2023): at random, the most frequent of all
records, or those that most often are beside the objects of the image.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Any

from megatron_llava.curation.arguments import KeptRecordsSettings
from megatron_llava.curation.kept_records import (
    check_field,
    check_output,
    field_value,
    open_json_records,
    written,
)
from megatron_llava.data.records import decoded_record
from megatron_llava.data.splitmix import one_hash, permutation

ABSENT = ("random", "popular", "adversarial")
"""How absent objects are chosen."""
MISSING = ("error", "drop")
"""What becomes of a record without the field: an error, or it is asked nothing."""
QUESTION = "Is there {object} in the image?"


@dataclass(frozen=True, kw_only=True)
class ObjectQuestionSettings(KeptRecordsSettings):
    """The flags of tools/make_object_questions.py, under their names.

    Raises:
        ValueError: a value out of range.
    """

    objects: str
    absent: tuple[str, ...] = ABSENT
    per_image: int = 3
    question: str = QUESTION
    missing: str = "error"

    def __post_init__(self) -> None:
        assert self.missing in MISSING and set(self.absent) <= set(ABSENT)
        if self.per_image < 1:
            raise ValueError(f"--per-image {self.per_image}: expected at least 1")
        if "{object}" not in self.question:
            raise ValueError(f"--question {self.question!r}: expected {{object}} in it")
        check_field(self.objects, "--objects")


@dataclass(frozen=True, kw_only=True)
class ObjectQuestionSummary:
    """Numbers of records, of records that were asked nothing, and of questions.

    Attributes:
        silent: records without the field, or without objects that are or are not there.
        questions: half of them are answered by yes.
    """

    records: int
    silent: int
    questions: int

    def __str__(self) -> str:
        nothing = f", {self.silent:,} of them asked nothing" if self.silent else ""
        return f"{self.questions:,} questions about {self.records:,} records{nothing}"


@dataclass
class ObjectCounts:
    """How often objects are there, alone and together, over the records that were counted."""

    records: Counter[str] = field(default_factory=Counter)
    together: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, present: Sequence[str]) -> None:
        """Count the distinct objects of one record."""
        self.records.update(present)
        for name in present:
            self.together[name].update(other for other in present if other != name)

    def by_frequency(self) -> list[str]:
        """All objects, the most frequent first, equally frequent ones by name."""
        return sorted(self.records, key=lambda name: (-self.records[name], name))


class AbsentObjects:
    """Chooses objects that are not in an image.

    Args:
        counts: of all records.
        seed: of random ones.
    """

    def __init__(self, counts: ObjectCounts, seed: int) -> None:
        self.counts = counts
        self.seed = seed
        self.frequent = counts.by_frequency()

    def choose(self, how: str, present: Sequence[str], count: int, record: int) -> list[str]:
        """At most ``count`` objects; fewer where all records together have no more.

        Args:
            how: one of `ABSENT`.
            record: number of the record, by which random choices differ.
        """
        if how == "random":
            order = permutation(one_hash(self.seed, 2 * record), len(self.frequent))
            return self._first((self.frequent[place] for place in order), present, count)
        if how == "popular":
            return self._first(iter(self.frequent), present, count)
        beside: Counter[str] = Counter()
        for name in present:
            beside.update(self.counts.together[name])
        ranked = nsmallest(
            count,
            (name for name in beside if name not in present),
            key=lambda name: (-beside[name], -self.counts.records[name], name),
        )
        more = self._first(iter(self.frequent), {*present, *ranked}, count - len(ranked))
        return ranked + more

    @staticmethod
    def _first(names: Iterator[str], left_out: Sequence[str] | set[str], count: int) -> list[str]:
        found: list[str] = []
        for name in names:
            if len(found) == count:
                break
            if name not in left_out:
                found.append(name)
        return found


def make_object_questions(settings: ObjectQuestionSettings) -> ObjectQuestionSummary:
    """Write a record for each question, with its way of choosing as ``kind``.

    A record is asked about at most ``per_image`` of its objects, chosen by the seed, and as many
    absent ones, in turn; of each way of choosing, about the same present ones.

    Raises:
        ValueError: one line: an output that exists, an input of another kind, a record without the
            field or with one that is no list of names, or without one image. Nothing is written
            then.
    """
    check_output("--output", settings.output, overwrite=settings.overwrite)
    records = open_json_records(settings.input, settings.seed, settings.data_root)
    counts = ObjectCounts()
    for source, raw in records:
        counts.add(_objects(decoded_record(raw, source), settings, source))
    absent = AbsentObjects(counts, settings.seed)
    silent = questions = 0
    with written(settings.output) as (output,):
        for number, (source, raw) in enumerate(records):
            record = decoded_record(raw, source)
            present = _objects(record, settings, source)
            made = 0
            for how in settings.absent:
                for question in _questions(record, present, absent, how, number, settings, source):
                    output.write(json.dumps(question).encode() + b"\n")
                    made += 1
            questions += made
            silent += not made
    return ObjectQuestionSummary(records=len(records), silent=silent, questions=questions)


def _objects(record: dict[str, Any], settings: ObjectQuestionSettings, source: str) -> list[str]:
    """The distinct names of a record, in order, without regard to case."""
    value = field_value(record, settings.objects)
    if value is None:
        if settings.missing == "error":
            raise ValueError(
                f"{source}: has no {settings.objects}; --missing drop asks nothing about such"
            )
        return []
    if not isinstance(value, list) or not all(isinstance(n, str) and n.strip() for n in value):
        raise ValueError(
            f"{source}: --objects {settings.objects}: {json.dumps(value)[:80]} is no list of names"
        )
    return list(dict.fromkeys(" ".join(name.lower().split()) for name in value))


def _questions(
    record: dict[str, Any],
    present: list[str],
    absent: AbsentObjects,
    how: str,
    number: int,
    settings: ObjectQuestionSettings,
    source: str,
) -> Iterator[dict[str, Any]]:
    others = absent.choose(how, present, settings.per_image, number)
    order = permutation(one_hash(settings.seed, 2 * number + 1), len(present))
    asked = [present[place] for place in order[: min(settings.per_image, len(others))]]
    if not asked:
        return
    image = record.get("image")
    if not isinstance(image, str):
        raise ValueError(f"{source}: expected the name of one image under 'image'")
    pairs = [pair for both in zip(asked, others, strict=False) for pair in both]
    for place, name in enumerate(pairs):
        text = settings.question.replace("{object}", _with_article(name))
        yield {
            "id": f"{record.get('id', number)}-{how}-{place}",
            "image": image,
            "kind": how,
            "conversations": [
                {"from": "human", "value": f"<image>\n{text}"},
                {"from": "gpt", "value": "No" if place % 2 else "Yes"},
            ],
        }


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"

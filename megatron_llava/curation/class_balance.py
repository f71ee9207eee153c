"""At most so many records of each class, chosen at random by a seed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_llava.curation.arguments import KeptRecordsSettings
from megatron_llava.curation.kept_records import (
    check_field,
    check_output,
    field_value,
    open_json_records,
    record_line,
    written,
)
from megatron_llava.data.records import decoded_record
from megatron_llava.data.sampling import drawn, seed_of

MISSING = ("error", "keep", "drop")
"""What becomes of a record without the field: an error, or all such are kept or dropped."""

_KEPT, _DROPPED = -1, -2  # stand for the class of a record that has none


@dataclass(frozen=True, kw_only=True)
class BalanceSettings(KeptRecordsSettings):
    """The flags of tools/balance_classes.py, under their names.

    Raises:
        ValueError: a value out of range.
    """

    by: str
    max_per_class: int
    missing: str = "error"

    def __post_init__(self) -> None:
        assert self.missing in MISSING
        if self.max_per_class < 1:
            raise ValueError(f"--max-per-class {self.max_per_class}: expected at least 1")
        check_field(self.by)


@dataclass(frozen=True, kw_only=True)
class BalanceSummary:
    """Records of each class before and after.

    Attributes:
        before: by the class as JSON text, in ascending order.
        missing: records without the field, and how many of them are kept.
    """

    before: dict[str, int]
    after: dict[str, int]
    missing: tuple[int, int]

    def lines(self) -> list[str]:
        """One for each class, and one of all."""
        rows = [(name, count, self.after[name]) for name, count in self.before.items()]
        if self.missing[0]:
            rows.append(("(no such field)", *self.missing))
        total = sum(row[1] for row in rows), sum(row[2] for row in rows)
        return [
            f"{name}: {after:,} of {before:,} records"
            for name, before, after in [*rows, ("all", *total)]
        ]


def balance_classes(settings: BalanceSettings) -> BalanceSummary:
    """Write the chosen records in their order, read once to count and once to write.

    Which records of a class are chosen depends on the seed, its name and its own number of records
    alone: other classes, and where they stand, change nothing.

    Raises:
        ValueError: one line: an output that exists, an input of another kind, a record without the
            field or with one that names no class, or no record left. Nothing is written then.
    """
    check_output("--output", settings.output, overwrite=settings.overwrite)
    records = open_json_records(settings.input, settings.seed, settings.data_root)
    names: dict[str, int] = {}
    classes = np.empty(len(records), dtype=np.int32)
    for number, (source, raw) in enumerate(records):
        name = class_of(decoded_record(raw, source), settings.by, source)
        if name is None:
            classes[number] = _without(source, settings)
        else:
            classes[number] = names.setdefault(name, len(names))
    chosen = classes == _KEPT
    order = np.argsort(classes, kind="stable")
    borders = np.searchsorted(classes[order], np.arange(len(names) + 1))
    for name, number in names.items():
        members = order[borders[number] : borders[number + 1]]
        count = min(len(members), settings.max_per_class)
        chosen[members[drawn(len(members), count, seed_of(settings.seed, 0, name))]] = True
    if not chosen.any():
        raise ValueError(f"--by {settings.by}: no record has it, and --missing drop leaves none")
    with written(settings.output) as (output,):
        for wanted, (_, raw) in zip(chosen.tolist(), records, strict=True):
            if wanted:
                output.write(record_line(raw))
    before, after = Counter(classes.tolist()), Counter(classes[chosen].tolist())
    return BalanceSummary(
        before={name: before[names[name]] for name in sorted(names)},
        after={name: after[names[name]] for name in sorted(names)},
        missing=(before[_KEPT] + before[_DROPPED], after[_KEPT]),
    )


def class_of(record: Mapping[str, Any], by: str, source: str) -> str | None:
    """The value of a key, or of `outer.inner`, as JSON text; None where there is none or null.

    Raises:
        ValueError: it is a list, an object or a fraction; one line that starts with `source`.
    """
    value = field_value(record, by)
    if value is None:
        return None
    if not isinstance(value, (str, int)):
        raise ValueError(
            f"{source}: --by {by}: {json.dumps(value)[:80]} names no class; expected text, a whole "
            "number or true or false"
        )
    return json.dumps(value, ensure_ascii=False)


def _without(source: str, settings: BalanceSettings) -> int:
    if settings.missing == "error":
        raise ValueError(
            f"{source}: has no {settings.by}; --missing keep or drop says what becomes of such"
        )
    return _KEPT if settings.missing == "keep" else _DROPPED

"""The records with the highest values of a field, such as a score of their quality.

The random records that they are held against are a mixture's ``sampling_strategy: random:N``.
"""

from __future__ import annotations

import json
import math
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

MISSING = ("error", "drop")
"""What becomes of a record without the field: an error, or it is never chosen."""


@dataclass(frozen=True, kw_only=True)
class TopSettings(KeptRecordsSettings):
    """The flags of tools/select_top.py, under their names.

    The seed is of random entries of a mixture; the choice itself has no chance in it.

    Raises:
        ValueError: a value out of range.
    """

    by: str
    count: int
    missing: str = "error"

    def __post_init__(self) -> None:
        assert self.missing in MISSING
        if self.count < 1:
            raise ValueError(f"--count {self.count}: expected at least 1")
        check_field(self.by)


@dataclass(frozen=True, kw_only=True)
class TopSummary:
    """Numbers of records, and the values of those that are kept.

    Attributes:
        missing: records without the field.
        lowest, highest: values of kept records.
    """

    records: int
    missing: int
    kept: int
    lowest: float
    highest: float

    def __str__(self) -> str:
        without = f", {self.missing:,} of them without it" if self.missing else ""
        return (
            f"{self.kept:,} of {self.records:,} records{without}: values from {self.lowest:g} to "
            f"{self.highest:g}"
        )


def select_top(settings: TopSettings) -> TopSummary:
    """Write the records with the highest values in their order; of equal ones the earlier stay.

    Raises:
        ValueError: one line: an output that exists, an input of another kind, a record without the
            field or with one that is no number, or fewer records than asked for. Nothing is
            written then.
    """
    check_output("--output", settings.output, overwrite=settings.overwrite)
    records = open_json_records(settings.input, settings.seed, settings.data_root)
    scores = np.empty(len(records))
    for number, (source, raw) in enumerate(records):
        scores[number] = _score(decoded_record(raw, source), settings, source)
    missing = int(np.isnan(scores).sum())
    if len(records) - missing < settings.count:
        raise ValueError(
            f"--count {settings.count}: only {len(records) - missing} of {len(records)} records "
            f"have a {settings.by}"
        )
    # NaN is sorted behind every number.
    best = np.argsort(-scores, kind="stable")[: settings.count]
    chosen = np.zeros(len(records), dtype=bool)
    chosen[best] = True
    with written(settings.output) as (output,):
        for wanted, (_, raw) in zip(chosen.tolist(), records, strict=True):
            if wanted:
                output.write(record_line(raw))
    return TopSummary(
        records=len(records),
        missing=missing,
        kept=settings.count,
        lowest=float(scores[best[-1]]),
        highest=float(scores[best[0]]),
    )


def _score(record: Any, settings: TopSettings, source: str) -> float:
    """NaN for a record that has none and may be without."""
    value = field_value(record, settings.by)
    if value is None:
        if settings.missing == "error":
            raise ValueError(f"{source}: has no {settings.by}; --missing drop never chooses such")
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{source}: --by {settings.by}: {json.dumps(value)[:80]} is no number")
    return float(value)

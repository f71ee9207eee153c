"""One pass over records that leaves out near duplicates of earlier ones."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from megatron_llava.curation.arguments import KeptRecordsSettings
from megatron_llava.curation.image_hash import DEFAULT_DISTANCE, MAX_DISTANCE, load_imagehash
from megatron_llava.curation.kept_records import (
    check_output,
    open_json_records,
    record_line,
    written,
)
from megatron_llava.curation.near_duplicates import (
    BY,
    Fingerprint,
    Match,
    NearDuplicates,
    fingerprint,
)
from megatron_llava.curation.text_similarity import DEFAULT_SIMILARITY, MIN_SIMILARITY
from megatron_llava.data.bad_records import BadRecords
from megatron_llava.data.record_processes import in_processes
from megatron_llava.data.record_progress import RecordProgress


@dataclass(frozen=True, kw_only=True)
class DeduplicateSettings(KeptRecordsSettings):
    """The flags of tools/deduplicate.py, under their names.

    Raises:
        ValueError: a value out of range.
    """

    image_folder: Path | None = None
    by: str = "both"
    image_hash_distance: int = DEFAULT_DISTANCE
    text_similarity: float = DEFAULT_SIMILARITY
    report: Path | None = None
    workers: int = 1
    max_bad_records: int = 0

    def __post_init__(self) -> None:
        assert self.by in BY
        if not 0 <= self.image_hash_distance <= MAX_DISTANCE:
            raise ValueError(
                f"--image-hash-distance {self.image_hash_distance}: expected 0 to {MAX_DISTANCE} "
                "bits of 64; from 14 on, different photographs are near"
            )
        if not MIN_SIMILARITY <= self.text_similarity <= 1:
            raise ValueError(
                f"--text-similarity {self.text_similarity}: expected {MIN_SIMILARITY} to 1"
            )
        if self.workers < 1:
            raise ValueError(f"--workers {self.workers}: expected at least 1")
        if self.image_folder is not None and not self.image_folder.is_dir():
            raise ValueError(f"--image-folder {self.image_folder}: no such directory")

    @property
    def report_path(self) -> Path:
        """Beside the output where no other is given."""
        return self.report or self.output.with_suffix(".removed.jsonl")


@dataclass(frozen=True, kw_only=True)
class DeduplicateSummary:
    """What a run did.

    Attributes:
        kept: records written.
        removed: near duplicates.
        bad_records: records left out because they cannot be read.
        unjudged: kept records with videos, which are not compared.
    """

    kept: int
    removed: int
    bad_records: int
    unjudged: int
    seconds: float

    def __str__(self) -> str:
        videos = f" ({self.unjudged} with videos, not compared)" if self.unjudged else ""
        return (
            f"{self.kept} records kept{videos}, {self.removed} near duplicates removed, "
            f"{self.bad_records} bad records, {self.seconds:.1f} s"
        )


def deduplicate(settings: DeduplicateSettings, *, log: TextIO = sys.stderr) -> DeduplicateSummary:
    """Write the records that are no near duplicate of an earlier kept one, and a report of others.

    The answer depends on the order of the records, not on the number of workers. A line of the
    report has `removed` and `duplicate_of`, the places of two records, `image_distances` and
    `text_similarity`.

    Raises:
        ValueError: one line: an output that exists, an input of another kind, or the bad record
            that is one more than `max_bad_records`. Nothing is written then.
    """
    started = time.monotonic()
    report_path = settings.report_path
    check_output("--output", settings.output, overwrite=settings.overwrite)
    check_output("--report", report_path, overwrite=settings.overwrite)
    if report_path.resolve() == settings.output.resolve():
        raise ValueError(f"--report {report_path}: is the --output too")
    bad = BadRecords(settings.max_bad_records)
    records = open_json_records(settings.input, settings.seed, settings.data_root)
    progress = RecordProgress(len(records), log)
    if settings.by != "text":
        load_imagehash()  # once, before there are workers
    seen = NearDuplicates(settings.image_hash_distance, settings.text_similarity)
    sources: list[str] = []
    removed = unjudged = 0
    waiting: deque[tuple[str, Any]] = deque()
    made = partial(_Fingerprinter, settings.image_folder, settings.by)
    results = in_processes(_remembered(records, waiting), made, settings.workers)
    with written(settings.output, report_path) as (output, report), closing(results):
        for result in results:
            progress.advance()
            source, raw = waiting.popleft()
            if isinstance(result, str):
                bad.skip(result, progress)
                continue
            match = None if result is None else seen.match(result)
            if match is not None:
                removed += 1
                report.write(_removed_line(source, sources[match.number], match))
                continue
            if result is None:
                unjudged += 1
            else:
                seen.add(len(sources), result)
            sources.append(source)
            output.write(record_line(raw))
        progress.finish()
    return DeduplicateSummary(
        kept=len(sources),
        removed=removed,
        bad_records=bad.count,
        unjudged=unjudged,
        seconds=time.monotonic() - started,
    )


def _removed_line(source: str, earlier: str, match: Match) -> bytes:
    line = {
        "removed": source,
        "duplicate_of": earlier,
        "image_distances": match.image_distances,
        "text_similarity": match.text_similarity,
    }
    return json.dumps(line).encode() + b"\n"


def _remembered(
    records: Iterable[tuple[str, Any]], waiting: deque[tuple[str, Any]]
) -> Iterator[tuple[str, Any]]:
    """The records, each kept in `waiting` until its result comes: results carry none of it back."""
    for record in records:
        waiting.append(record)
        yield record


class _Fingerprinter:
    """Makes fingerprints of raw records; None of those not compared, a str of a bad one."""

    def __init__(self, image_folder: Path | None, by: str) -> None:
        self._image_folder, self._by = image_folder, by

    def __call__(self, records: Sequence[tuple[str, Any]]) -> list[Fingerprint | str | None]:
        return [self._fingerprint(raw, source) for source, raw in records]

    def _fingerprint(self, raw: Any, source: str) -> Fingerprint | str | None:
        try:
            return fingerprint(raw, source, self._image_folder, self._by)
        except ValueError as error:
            return str(error)

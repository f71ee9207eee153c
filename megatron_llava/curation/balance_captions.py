"""The two passes over captions: counting what holds each entry, and writing what stays."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from megatron_llava.curation.balance import (
    BalanceSummary,
    EntryStatistics,
    entry_probabilities,
    stays,
)
from megatron_llava.curation.captions import Captions, CaptionSettings, as_line
from megatron_llava.curation.match_counts import (
    MatchCounts,
    basis_of,
    count_matches,
    load_counts,
    save_counts,
    shard_path,
)
from megatron_llava.curation.matching import EntryMatcher, can_match, read_entries
from megatron_llava.data.record_progress import RecordProgress


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """The flags of the second pass.

    Attributes:
        counts: prefix of the shards' counts; None to count first, in the same process.
        output: a .jsonl file.
        max_per_entry: t.
    """

    counts: Path | None = None
    output: Path
    max_per_entry: int = 20_000
    overwrite: bool = False


def count_captions(
    settings: CaptionSettings,
    entries_path: Path,
    prefix: Path,
    *,
    overwrite: bool = False,
    log: TextIO | None = None,
) -> tuple[Path, int, MatchCounts]:
    """Count one share and write its file: its path, the number of captions, the counts.

    Raises:
        ValueError: one line, before anything is written.
    """
    path = shard_path(prefix, settings.shard)
    _check_output("--counts", path, overwrite)
    entries = read_entries(entries_path)
    captions = Captions(settings)
    counts = count_matches(captions, EntryMatcher(entries), len(entries), log or sys.stderr)
    save_counts(path, counts, basis_of(settings, captions, entries))
    return path, len(captions), counts


def sample_captions(
    settings: CaptionSettings,
    entries_path: Path,
    sampling: SampleSettings,
    *,
    log: TextIO | None = None,
) -> BalanceSummary:
    """Write the records of a share that stay, in order.

    Raises:
        ValueError: one line; nothing is left under the name of the output.
    """
    log = log or sys.stderr
    _check_sampling(settings, sampling)
    entries = read_entries(entries_path)
    captions = Captions(settings)
    basis = basis_of(settings, captions, entries)
    matcher = EntryMatcher(entries)
    if sampling.counts is None:
        counts = count_matches(captions, matcher, len(entries), log).captions
    else:
        counts = load_counts(sampling.counts, basis).captions
    sampler = _Sampler(matcher, counts, sampling.max_per_entry, settings.seed)
    partial = sampling.output.with_name(sampling.output.name + ".partial")
    try:
        sampler.write(captions, partial, log)
        partial.replace(sampling.output)
    finally:
        partial.unlink(missing_ok=True)
    in_tail = counts < sampling.max_per_entry
    return BalanceSummary(
        max_per_entry=sampling.max_per_entry,
        records=len(captions),
        matched=sampler.matched,
        kept=sampler.kept,
        unmatchable=sum(not can_match(entry) for entry in entries),
        before=EntryStatistics.of(counts, in_tail),
        after=EntryStatistics.of(sampler.counts, in_tail),
    )


class _Sampler:
    """Writes what stays and counts it.

    Attributes:
        counts: captions that hold each entry, of those that stay: [entries].
        matched: captions that hold an entry.
        kept: those of them that stay.
    """

    def __init__(
        self, matcher: EntryMatcher, counts: NDArray[np.int64], max_per_entry: int, seed: int
    ) -> None:
        self._matcher, self._before, self._seed = matcher, counts, seed
        self._probabilities = entry_probabilities(counts, max_per_entry)
        self.counts = np.zeros_like(counts)
        self.matched = self.kept = 0

    def write(self, captions: Captions, path: Path, log: TextIO) -> None:
        progress = RecordProgress(len(captions), log)
        with path.open("wb") as stream:
            for number, caption, raw in captions:
                found = self._matcher(caption)
                if not self._before[found].all():
                    raise ValueError(
                        "--counts: an entry was counted nowhere that a caption holds: the records "
                        "are not those that were counted"
                    )
                self.matched += len(found) > 0
                if stays(self._probabilities[found], self._seed, number):
                    stream.write(as_line(raw))
                    self.counts[found] += 1
                    self.kept += 1
                progress.advance()
        progress.finish()


def _check_sampling(settings: CaptionSettings, sampling: SampleSettings) -> None:
    if sampling.max_per_entry < 1:
        raise ValueError(f"--max-per-entry {sampling.max_per_entry}: expected 1 or more")
    if sampling.output.suffix != ".jsonl":
        raise ValueError(f"--output {sampling.output}: expected a .jsonl file")
    if sampling.counts is None and settings.shard[1] > 1:
        raise ValueError(
            f"--shard {settings.shard[0]}/{settings.shard[1]}: needs --counts, the counts of all "
            "shards"
        )
    _check_output("--output", sampling.output, sampling.overwrite)


def _check_output(flag: str, path: Path, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise ValueError(f"{flag} {path}: {path.parent} is no folder")
    if path.exists() and not overwrite:
        raise ValueError(f"{flag} {path}: exists; --overwrite replaces it")

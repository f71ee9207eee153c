"""How many captions hold each entry, and the files in which shards leave that for each other."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from megatron_llava.curation.captions import Captions, CaptionSettings
from megatron_llava.curation.matching import EntryMatcher, digest_of
from megatron_llava.data.record_progress import RecordProgress


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What counts are of. Those of other entries, records or choices cannot be used together."""

    entries: str
    records: int
    caption_key: str | None
    seed: int


@dataclass(frozen=True)
class MatchCounts:
    """Counts of a share or of all.

    Attributes:
        captions: int64 [entries], captions that hold the entry.
        matched: captions that hold at least one entry.
    """

    captions: NDArray[np.int64]
    matched: int


def basis_of(settings: CaptionSettings, captions: Captions, entries: Sequence[str]) -> Basis:
    return Basis(
        entries=digest_of(entries),
        records=captions.total,
        caption_key=settings.caption_key,
        seed=settings.seed,
    )


def count_matches(
    captions: Captions, matcher: EntryMatcher, entries: int, log: TextIO
) -> MatchCounts:
    counts = np.zeros(entries, dtype=np.int64)
    matched = 0
    progress = RecordProgress(len(captions), log)
    for _, caption, _ in captions:
        found = matcher(caption)
        counts[found] += 1
        matched += len(found) > 0
        progress.advance()
    progress.finish()
    return MatchCounts(counts, matched)


def shard_path(prefix: Path, shard: tuple[int, int]) -> Path:
    return prefix.with_name(f"{prefix.name}-{shard[0]:05}-of-{shard[1]:05}.npz")


def save_counts(path: Path, counts: MatchCounts, basis: Basis) -> None:
    written = path.with_name(path.name + ".partial")
    with written.open("wb") as stream:
        described = json.dumps(asdict(basis))
        np.savez(stream, captions=counts.captions, matched=counts.matched, basis=described)
    written.replace(path)


def load_counts(prefix: Path, basis: Basis) -> MatchCounts:
    """The counts of all shards at a prefix, added up.

    Raises:
        ValueError: shards are missing, of another number, damaged, or not of this basis.
    """
    name = re.compile(rf"{re.escape(prefix.name)}-([0-9]{{5}})-of-([0-9]{{5}})\.npz")
    found = [match for path in prefix.parent.glob("*.npz") if (match := name.fullmatch(path.name))]
    numbers = sorted({int(match[2]) for match in found})
    if len(numbers) != 1:
        among = " and ".join(map(str, numbers)) + " shards" if numbers else "none"
        raise ValueError(f"--counts {prefix}: expected the counts of all shards, found {among}")
    paths = [shard_path(prefix, (number, numbers[0])) for number in range(numbers[0])]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"--counts {prefix}: {len(missing)} of {len(paths)} shards are not counted yet: "
            f"{', '.join(missing)}"
        )
    shards = [_load(path, basis) for path in paths]
    captions = np.sum([shard.captions for shard in shards], axis=0)
    return MatchCounts(captions, sum(shard.matched for shard in shards))


def _load(path: Path, basis: Basis) -> MatchCounts:
    try:
        with np.load(path, allow_pickle=False) as content:
            described = Basis(**json.loads(str(content["basis"])))
            counts = MatchCounts(content["captions"], int(content["matched"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: damaged: {error}") from None
    for field, is_now in asdict(basis).items():
        was = getattr(described, field)
        if was != is_now:
            what = "other entries" if field == "entries" else f"{field} {was}, not {is_now}"
            raise ValueError(f"{path}: made with {what}: count again")
    return counts

"""What a mixture expects and which of its sources are missing, told without reading a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_llava.data.mixture_entries import Entry, missing_sources, read_entries


@dataclass(frozen=True, kw_only=True)
class MixtureCheck:
    """A mixture, not opened.

    Attributes:
        sources: how many it names.
        missing: those that are not there, each with the records expected.
        expected: in words, the records that it takes.
    """

    sources: int
    missing: tuple[str, ...]
    expected: str


def check_mixture(path: Path, data_root: Path) -> MixtureCheck:
    """Look for the sources of a mixture below a folder.

    Raises:
        ValueError: one line: the file is no mixture, or an entry's strategy or weight is unusable.
    """
    entries = read_entries(path)
    return MixtureCheck(
        sources=sum(len(entry.names) for entry in entries),
        missing=tuple(missing_sources(entries, data_root)),
        expected=_expected(entries),
    )


def _expected(entries: Sequence[Entry]) -> str:
    taken = [entry.expected_taken() for entry in entries]
    total = sum(number for number in taken if number is not None)
    unknown = taken.count(None)
    if unknown == len(taken):
        return "no number of records given"
    about = "" if all(entry.about is None for entry in entries) else "about "
    further = f" and those of {unknown} entries without a number" if unknown else ""
    return f"{about}{total:,} records{further}"

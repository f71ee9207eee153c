"""The entries of a YAML mixture: its sources, how much of each, and how many records they hold."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_llava.data.mixture import expand_braces
from megatron_llava.data.sampling import (
    check_strategy,
    check_weight,
    taken_records,
    weighted_number,
)

_KEYS = ("json_path", "sampling_strategy", "weight", "records", "about")
ABOUT_TOLERANCE = 0.05


@dataclass(frozen=True)
class Entry:
    """An entry of a mixture.

    Attributes:
        number: from 0.
        where: names the entry in messages.
        names: of its sources, as written, braces expanded.
        records, about: how many its sources hold together, exactly or within `ABOUT_TOLERANCE`;
            None where the entry does not say.
    """

    number: int
    where: str
    names: tuple[str, ...]
    strategy: Any
    weight: Any
    records: int | None
    about: int | None

    @property
    def expected(self) -> str:
        """How many records its sources hold, in words; '' where it does not say."""
        if self.records is not None:
            return f"{self.records:,} records"
        return "" if self.about is None else f"about {self.about:,} records"

    def expected_taken(self) -> int | None:
        """How many records it brings into the mixture; None where that cannot be told unread.

        Raises:
            ValueError: one line: a strategy or weight that cannot be used.
        """
        check_strategy(self.strategy, self.where)
        check_weight(self.weight, self.where)
        number = self.about if self.records is None else self.records
        # A strategy applies to each source on its own, and only their sum is known.
        if number is None or (len(self.names) > 1 and self.strategy != "all"):
            return None
        return weighted_number(
            taken_records(number, self.strategy, self.where), self.weight, self.where
        )

    def check_records(self, found: int) -> None:
        """ValueError where its sources hold another number than it says."""
        holds = f"{self.where}: {', '.join(self.names)} holds {found:,} records"
        if self.records is not None and found != self.records:
            raise ValueError(f"{holds}, 'records' says {self.records:,}")
        if self.about is not None and abs(found - self.about) > ABOUT_TOLERANCE * self.about:
            raise ValueError(
                f"{holds}, 'about' says {self.about:,}, which allows {ABOUT_TOLERANCE:.0%} of it "
                "more or less"
            )


def read_entries(path: Path) -> list[Entry]:
    """The entries of a mixture, at least one.

    Raises:
        ValueError: one line naming the file and the entry.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not valid YAML: {reason}") from None
    entries = content.get("datasets") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: expected 'datasets', a list of at least one entry")
    return [_entry(f"{path}: datasets[{n}]", n, entry) for n, entry in enumerate(entries)]


def _entry(where: str, number: int, content: Any) -> Entry:
    if not isinstance(content, dict) or not isinstance(content.get("json_path"), str):
        raise ValueError(f"{where}: expected an object with a 'json_path'")
    unknown = sorted(set(content) - set(_KEYS))
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(_KEYS)}")
    records, about = (_whole_number(content, key, where) for key in ("records", "about"))
    if records is not None and about is not None:
        raise ValueError(f"{where}: 'records' {records} and 'about' {about}: give one of them")
    return Entry(
        number=number,
        where=where,
        names=tuple(expand_braces(content["json_path"])),
        strategy=content.get("sampling_strategy", "all"),
        weight=content.get("weight", 1),
        records=records,
        about=about,
    )


def _whole_number(content: dict[str, Any], key: str, where: str) -> int | None:
    number = content.get(key)
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{where}: {key} {number!r}: expected a whole number above 0")
    return number


def missing_sources(entries: Sequence[Entry], data_root: Path) -> list[str]:
    """The names without a file, folder or match of a pattern, each with the records expected."""
    return [
        name + _in_parentheses(entry)
        for entry in entries
        for name in entry.names
        if not _is_there(data_root / name)
    ]


def _is_there(path: Path) -> bool:
    if path.exists() or not glob.has_magic(str(path)):
        return path.exists()
    return next(glob.iglob(str(path), recursive=True), None) is not None


def _in_parentheses(entry: Entry) -> str:
    if not entry.expected:
        return ""
    return f" ({entry.expected})" if len(entry.names) == 1 else f" (of {entry.expected} in all)"

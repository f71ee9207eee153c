"""Which entries a caption holds, by MetaCLIP's rule.

A space goes before and behind the caption and around each of , . ; : ? ! ` in it; tabs and line
ends become spaces. An entry with a space before and behind it then has to be a part of that text.
Case counts; an entry counts once a caption. Other marks (quotes, brackets, hyphens) belong to the
word that they touch, and two spaces are not one: entries that hold a mark of those that are spaced,
such as "St. Louis", match no caption.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_SPACED_MARKS = ",.;:?!`"
_SPACING = str.maketrans(
    {**{mark: f" {mark} " for mark in _SPACED_MARKS}, "\t": " ", "\n": " ", "\r": " "}
)
# A tab or line end, a mark without a space at each side, two marks with one space between them.
_NEVER_SPACED_SO = re.compile(r"[\t\n\r]|[,.;:?!`][^ ]|[^ ][,.;:?!`]|[,.;:?!`] [,.;:?!`]")


def spaced(caption: str) -> str:
    return f" {caption} ".translate(_SPACING)


def can_match(entry: str) -> bool:
    """Whether any caption can hold the entry."""
    return _NEVER_SPACED_SO.search(f" {entry} ") is None


class EntryMatcher:
    """Finds all entries in one pass over a caption (Aho and Corasick 1975).

    Args:
        entries: distinct, none empty.

    Raises:
        ValueError: pyahocorasick is not installed.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        try:
            import ahocorasick
        except ImportError:
            raise ValueError(
                "matching needs pyahocorasick: pip install 'megatron-llava[curation]'"
            ) from None
        self._automaton = ahocorasick.Automaton(ahocorasick.STORE_INTS)
        for number, entry in enumerate(entries):
            self._automaton.add_word(f" {entry} ", number)
        self._automaton.make_automaton()

    def __call__(self, caption: str) -> NDArray[np.int64]:
        """Numbers of the entries in a caption: [m], ascending."""
        found = {number for _, number in self._automaton.iter(spaced(caption))}
        return np.array(sorted(found), dtype=np.int64)


def read_entries(path: Path) -> list[str]:
    """A JSON list of strings (tools/build_metadata.py, MetaCLIP's own), or lines of a text file.

    Raises:
        ValueError: one line that names the file and what is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
        entries = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except OSError as error:
        raise ValueError(f"--entries {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--entries {path}: {error}") from None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"--entries {path}: expected a list of at least one entry")
    seen: dict[str, int] = {}
    for number, entry in enumerate(entries):
        if not isinstance(entry, str) or not entry.strip():
            raise ValueError(f"--entries {path}: entry {number} is {entry!r}, no text")
        if seen.setdefault(entry, number) != number:
            raise ValueError(
                f"--entries {path}: {entry!r} is there twice, as entries {seen[entry]} and {number}"
            )
    return entries


def digest_of(entries: Sequence[str]) -> str:
    return sha256(json.dumps(entries).encode()).hexdigest()

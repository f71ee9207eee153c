"""Several sources as one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_llava.data.sources import Source

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A source and how often each of its records is taken: counts int64 [records]."""

    file: Source
    counts: np.ndarray


class Mixture:
    """The chosen records of several sources, one by one, in their order.

    Args:
        parts: at least one; a record that is taken several times comes in as many passes.
    """

    def __init__(self, parts: Sequence[Chosen]) -> None:
        self.parts = tuple(parts)

    def __len__(self) -> int:
        return sum(int(part.counts.sum()) for part in self.parts)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return self.between(0, len(self))

    def between(self, begin: int, end: int) -> Iterator[tuple[str, Any]]:
        """The records from number `begin` up to `end`; what lies outside is not read."""
        passed = 0
        for part in self.parts:
            for taken in range(int(part.counts.max(initial=0))):
                wanted = part.counts > taken
                numbers = np.flatnonzero(wanted)
                wanted[numbers[: max(begin - passed, 0)]] = False
                wanted[numbers[max(end - passed, 0) :]] = False
                passed += len(numbers)
                if wanted.any():
                    yield from part.file.chosen(wanted)

    def describe(self) -> list[str]:
        """One line for each file: records taken, of how many."""
        return [
            f"{part.file.path}: {int(part.counts.sum()):,} of {len(part.file):,} records"
            for part in self.parts
        ]


def expand_braces(text: str) -> list[str]:
    """`a{b,c}d` as `abd` and `acd`, `{08..10}` as 08, 09 and 10; several give every combination."""
    match = _BRACES.search(text)
    if match is None:
        return [text]
    head, tail = text[: match.start()], text[match.end() :]
    return [name for word in _words(match[1]) for name in expand_braces(head + word + tail)]


def _words(inside: str) -> list[str]:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        return inside.split(",")
    first, last = numbers.groups()
    if int(first) > int(last):
        raise ValueError(f"{{{inside}}}: counts from {first} up to {last}, which is none")
    return [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]

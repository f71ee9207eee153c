"""Several sources as one: braces, and LLaVA's YAML mixtures with a sampling strategy for each.

    datasets:
      - json_path: /data/llava_{aokvqa,chartqa}.json
        sampling_strategy: "first:10%"     all (default) | first:N | end:N | random:N, or N%
      - json_path: /data/sharegpt4v.jsonl
        weight: 2.5                         two whole passes and a random half
      - json_path: /data/LLaVA-OneVision-Data        what `open_source` reads is read here too

N% is ceil(N * records / 100) records, as in LLaVA-NeXT. Random choices come from a seed, so that
every machine makes the same; LLaVA's are unseeded.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from megatron_llava.data.sources import Source, open_source

_STRATEGY = re.compile(r"(first|end|random):([0-9]+)(%?)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")
_KEYS = ("json_path", "sampling_strategy", "weight")


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


def open_records(path: str | Path, seed: int = 0) -> Mixture:
    """Open what --input names: what `open_source` reads, braces in its name, or a YAML mixture.

    Raises:
        ValueError: one line naming the file, entry or strategy.
    """
    text = str(path)
    if text.endswith((".yaml", ".yml")):
        return Mixture(_read_yaml(Path(text), seed))
    files = [open_source(name) for name in expand_braces(text)]
    return Mixture([Chosen(file=file, counts=np.ones(len(file), np.int64)) for file in files])


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


def _read_yaml(path: Path, seed: int) -> list[Chosen]:
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
    parts = []
    for number, entry in enumerate(entries):
        where = f"{path}: datasets[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("json_path"), str):
            raise ValueError(f"{where}: expected an object with a 'json_path'")
        unknown = sorted(set(entry) - set(_KEYS))
        if unknown:
            raise ValueError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(_KEYS)}")
        for name in expand_braces(entry["json_path"]):
            # A path in a mixture is as the user of the mixture would write it.
            file = open_source(name)
            strategy = entry.get("sampling_strategy", "all")
            counts = chosen_counts(len(file), strategy, _seed_of(seed, number, name), where)
            weight = entry.get("weight", 1)
            parts.append(Chosen(file=file, counts=_weighted(counts, weight, seed, where, name)))
    if not any(part.counts.any() for part in parts):
        raise ValueError(f"{path}: its sampling strategies leave no record")
    return parts


def chosen_counts(records: int, strategy: Any, seed: int, where: str) -> np.ndarray:
    """int64 [records], 1 for each record that a strategy takes.

    Raises:
        ValueError: an unknown strategy; more records than there are; none.
    """
    counts = np.zeros(records, dtype=np.int64)
    if strategy == "all":
        return counts + 1
    match = _STRATEGY.fullmatch(str(strategy))
    if match is None:
        raise ValueError(
            f"{where}: sampling_strategy {strategy!r}: expected all, first:N, end:N or random:N, "
            "N a number of records or a percentage such as 10%"
        )
    kind, number, percent = match[1], int(match[2]), match[3]
    count = math.ceil(number * records / 100) if percent else number
    if not 0 < count <= records:
        raise ValueError(
            f"{where}: sampling_strategy {strategy!r} takes {count} of {records} records"
        )
    if kind == "first":
        counts[:count] = 1
    elif kind == "end":
        counts[records - count :] = 1
    else:
        counts[_drawn(records, count, seed)] = 1
    return counts


def _weighted(counts: np.ndarray, weight: Any, seed: int, where: str, name: str) -> np.ndarray:
    """Counts times a weight, whose fraction is a random share of the chosen records."""
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight > 0:
        raise ValueError(f"{where}: weight {weight!r}: expected a number above 0")
    whole = math.floor(weight)
    result = counts * whole
    chosen = np.flatnonzero(counts)
    extra = round((weight - whole) * len(chosen))
    if extra:
        result[chosen[_drawn(len(chosen), extra, _seed_of(seed, -1, name))]] += 1
    return result


def _drawn(records: int, count: int, seed: int) -> np.ndarray:
    # The raw bits of a generator are the same in every version of numpy, its choices are not.
    order = np.argsort(np.random.PCG64(seed).random_raw(records), kind="stable")
    return order[:count]


def _seed_of(seed: int, number: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}\n{number}\n{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little")

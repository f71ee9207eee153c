"""What --input names: one source, braces, or a YAML mixture in the format of LLaVA's.

    datasets:
      - json_path: /data/llava_{aokvqa,chartqa}.json
        sampling_strategy: "first:10%"     all (default) | first:N | end:N | random:N, or N%
      - json_path: /data/sharegpt4v.jsonl
        weight: 2.5                         two whole passes and a random half
      - json_path: LLaVA-OneVision-Data/chartqa   what `open_source` reads; below --data-root
        records: 18260                      an error where it holds another number

Everything that is missing is listed at once. Two entries of different names that hold the same
records are an error: a weight says that better.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from megatron_llava.data.mixture import Chosen, Mixture, expand_braces
from megatron_llava.data.records import parse_record
from megatron_llava.data.sampling import chosen_counts, seed_of, weighted_counts
from megatron_llava.data.sources import Source, open_source

_KEYS = ("json_path", "sampling_strategy", "weight", "records")
_COMPARED = 16  # first records of a source that tell it from others


def open_records(path: str | Path, seed: int = 0, data_root: Path | None = None) -> Mixture:
    """Open what --input names: what `open_source` reads, braces in its name, or a YAML mixture.

    data_root: what relative paths in a mixture are relative to; the working directory by default.

    Raises:
        ValueError: one line naming the file, entry or strategy.
    """
    text = str(path)
    if text.endswith((".yaml", ".yml")):
        return Mixture(_read_yaml(Path(text), seed, data_root or Path()))
    files = [open_source(name) for name in expand_braces(text)]
    return Mixture([Chosen(file=file, counts=np.ones(len(file), np.int64)) for file in files])


@dataclass(frozen=True)
class _Entry:
    """An entry of a mixture. where: names it in messages."""

    number: int
    where: str
    names: list[str]
    strategy: Any
    weight: Any
    records: int | None


def _read_yaml(path: Path, seed: int, data_root: Path) -> list[Chosen]:
    entries = [_entry(path, number, content) for number, content in enumerate(_entries(path))]
    _check_presence(path, entries, data_root)
    parts = [part for entry in entries for part in _chosen(entry, seed, data_root)]
    _check_clashes(path, [part.file for part in parts])
    if not any(part.counts.any() for part in parts):
        raise ValueError(f"{path}: its sampling strategies leave no record")
    return parts


def _entries(path: Path) -> list[Any]:
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
    return entries


def _entry(path: Path, number: int, content: Any) -> _Entry:
    where = f"{path}: datasets[{number}]"
    if not isinstance(content, dict) or not isinstance(content.get("json_path"), str):
        raise ValueError(f"{where}: expected an object with a 'json_path'")
    unknown = sorted(set(content) - set(_KEYS))
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(_KEYS)}")
    records = content.get("records")
    if records is not None and (isinstance(records, bool) or not isinstance(records, int)):
        raise ValueError(f"{where}: records {records!r}: expected a whole number")
    return _Entry(
        number=number,
        where=where,
        names=expand_braces(content["json_path"]),
        strategy=content.get("sampling_strategy", "all"),
        weight=content.get("weight", 1),
        records=records,
    )


def _check_presence(path: Path, entries: Sequence[_Entry], data_root: Path) -> None:
    names = [name for entry in entries for name in entry.names]
    # A pattern says itself what it does not find.
    missing = [n for n in names if "*" not in n and not (data_root / n).exists()]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(names)} are no such file or folder below --data-root "
            f"{data_root.resolve()}: {', '.join(missing)}"
        )


def _chosen(entry: _Entry, seed: int, data_root: Path) -> list[Chosen]:
    files = [open_source(data_root / name) for name in entry.names]
    found = sum(map(len, files))
    if entry.records is not None and found != entry.records:
        raise ValueError(
            f"{entry.where}: {', '.join(entry.names)} holds {found:,} records, 'records' says "
            f"{entry.records:,}"
        )
    parts = []
    for name, file in zip(entry.names, files, strict=True):
        # By the name as written: the same choice wherever the data lie.
        own_seed = seed_of(seed, entry.number, name)
        counts = chosen_counts(len(file), entry.strategy, own_seed, entry.where)
        counts = weighted_counts(counts, entry.weight, seed, entry.where, name)
        parts.append(Chosen(file=file, counts=counts))
    return parts


def _check_clashes(path: Path, files: Sequence[Source]) -> None:
    """ValueError where two of the files hold the same, judged by number and first records."""
    seen: dict[tuple[int, str], Source] = {}
    for file in files:
        other = seen.setdefault((len(file), _beginning(file)), file)
        if other.path != file.path:
            raise ValueError(
                f"{path}: {other.path} and {file.path} hold the same {len(file):,} records: remove "
                "one; a weight of 2 trains on them twice"
            )


def _beginning(file: Source) -> str:
    wanted = np.arange(len(file)) < _COMPARED
    digest = hashlib.sha256()
    for source, raw in file.chosen(wanted):
        try:
            turns: Any = parse_record(raw, source).turns
        except ValueError:  # preprocessing says so
            turns = raw if isinstance(raw, bytes) else repr(raw)
        digest.update(repr(turns).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()

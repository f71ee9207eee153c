"""What --input names: one source, braces, or a YAML mixture in the format of LLaVA's.

    datasets:
      - json_path: /data/llava_{aokvqa,chartqa}.json
        sampling_strategy: "first:10%"     all (default) | first:N | end:N | random:N, or N%
      - json_path: /data/sharegpt4v.jsonl
        weight: 2.5                         two whole passes and a random half
      - json_path: LLaVA-OneVision-Data/chartqa   what `open_source` reads; below --data-root
        records: 18260                      an error where it holds another number
      - json_path: LLaVA-ReCap-CC3M
        about: 2860000                      an error where it holds 5 % more or fewer

Everything that is missing is listed at once. Two entries of different names that hold the same
records are an error: a weight says that better.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_llava.data.image_source import FileSlice, ImageBytes, ImageSource
from megatron_llava.data.mixture import Chosen, Mixture, expand_braces
from megatron_llava.data.mixture_entries import Entry, missing_sources, read_entries
from megatron_llava.data.records import parse_record
from megatron_llava.data.sampling import chosen_counts, seed_of, weighted_counts
from megatron_llava.data.sources import Source, open_source

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


def _read_yaml(path: Path, seed: int, data_root: Path) -> list[Chosen]:
    entries = read_entries(path)
    _check_presence(path, entries, data_root)
    parts = [part for entry in entries for part in _chosen(entry, seed, data_root)]
    _check_clashes(path, [part.file for part in parts])
    if not any(part.counts.any() for part in parts):
        raise ValueError(f"{path}: its sampling strategies leave no record")
    return parts


def _check_presence(path: Path, entries: Sequence[Entry], data_root: Path) -> None:
    missing = missing_sources(entries, data_root)
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {sum(len(entry.names) for entry in entries)} are no such "
            f"file or folder below --data-root {data_root.resolve()}: {', '.join(missing)}"
        )


def _chosen(entry: Entry, seed: int, data_root: Path) -> list[Chosen]:
    files = [open_source(data_root / name) for name in entry.names]
    entry.check_records(sum(map(len, files)))
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
            record = parse_record(raw, source)
        except ValueError:  # preprocessing says so
            content: Any = raw if isinstance(raw, bytes) else repr(raw)
        else:
            content = record.turns, [*map(_told, (*record.images, *record.videos))]
        digest.update(repr(content).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _told(image: ImageSource) -> str | bytes | tuple[str, int]:
    """What tells an image from others, wherever its file lies."""
    if isinstance(image, FileSlice):
        return image.name, image.size
    return hashlib.sha256(image.data).digest() if isinstance(image, ImageBytes) else image

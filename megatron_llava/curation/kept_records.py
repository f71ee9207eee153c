"""Choosing among the records of JSON files, and writing those that are kept as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from megatron_llava.data.mixture import Mixture
from megatron_llava.data.mixture_file import open_records
from megatron_llava.data.records import RecordFile
from megatron_llava.data.sources import Several, Source


def open_json_records(path: Path, seed: int, data_root: Path | None) -> Mixture:
    """Open what --input names, of .json and .jsonl files only, each record once.

    Raises:
        ValueError: one line naming the file, entry or strategy; a record that a mixture takes
            several times would be a duplicate of itself.
    """
    records = open_records(path, seed, data_root)
    for part in records.parts:
        if not _is_json(part.file):
            raise ValueError(
                f"--input: {part.file.path} is no .json or .jsonl file; kept records are written "
                "as JSON lines, which cannot hold its images"
            )
        if part.counts.max(initial=0) > 1:
            raise ValueError(
                f"--input: the mixture takes records of {part.file.path} {part.counts.max()} "
                "times; choose records first and give the weight in the mixture of what is kept"
            )
    return records


def _is_json(source: Source) -> bool:
    if isinstance(source, Several):
        return all(map(_is_json, source.sources))
    return isinstance(source, RecordFile)


def record_line(raw: Any) -> bytes:
    """A raw record of `RecordFile` as a line: one of a .jsonl file byte by byte."""
    if isinstance(raw, bytes):
        return raw.rstrip(b"\r\n") + b"\n"
    return json.dumps(raw).encode() + b"\n"  # ASCII: also lone surrogates stay what they are


def check_field(by: str, flag: str = "--by") -> None:
    """ValueError for a flag that names no field."""
    if not all(by.split(".")):
        raise ValueError(f"{flag} {by}: expected a key, or keys with dots between them")


def field_value(record: Mapping[str, Any], by: str) -> Any:
    """The value of a key, or of `outer.inner`; None where there is none or null."""
    value: Any = record
    for key in by.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def check_output(flag: str, path: Path, *, overwrite: bool, suffix: str = ".jsonl") -> None:
    """ValueError for a file that cannot be written, before anything is read."""
    if path.suffix != suffix:
        raise ValueError(f"{flag} {path}: expected a name that ends in {suffix}")
    if not path.parent.is_dir():
        raise ValueError(f"{flag} {path}: no such directory {path.parent}")
    if path.exists() and not overwrite:
        raise ValueError(f"{flag} {path} exists: give another name or --overwrite")


@contextmanager
def written(*paths: Path) -> Iterator[list[BinaryIO]]:
    """Files that get their names together when all is written, and vanish on an error."""
    partial = [path.with_name(f"{path.name}.partial") for path in paths]
    files: list[BinaryIO] = []
    try:
        files.extend(path.open("wb") for path in partial)
        yield files
        for file in files:
            file.close()
        for source, path in zip(partial, paths, strict=True):
            source.replace(path)
    finally:
        for file, path in zip(files, partial, strict=False):
            file.close()
            path.unlink(missing_ok=True)

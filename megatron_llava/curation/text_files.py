"""Lines and texts of the files that a list of entries is made from, one at a time."""

from __future__ import annotations

import glob
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

_ROWS = 64  # texts decoded at once


def expanded(flag: str, names: Sequence[str]) -> list[Path]:
    """The files that names and patterns (`*`, `**`, `?`) stand for, in the order of their names.

    Raises:
        ValueError: a name without a file; a file named twice, which would be counted twice.
    """
    files: list[Path] = []
    for name in names:
        found = [Path(name)] if Path(name).is_file() else []
        if not found and glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))
            found = [path for path in map(Path, matches) if path.is_file()]
        if not found:
            raise ValueError(f"{flag} {name}: no such file")
        files += found
    path, times = max(Counter(files).items(), key=itemgetter(1), default=(Path(), 0))
    if times > 1:
        raise ValueError(f"{flag}: {path} is named {times} times and would be counted so often")
    return files


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """('file:line', line without its end) of UTF-8 text, plain or .gz, that is not blank."""
    opened: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield f"{path}:{number}", _decoded(line, f"{path}:{number}")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged: {error}") from None


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not valid UTF-8 at byte {error.start}") from None


class Corpus:
    """The texts of files of .txt (a text a line), .jsonl and .parquet (the field `text`).

    .txt and .jsonl may end in .gz. Only one text, and of parquet a few, are in memory. It can be
    read several times.

    Raises:
        ValueError: another suffix; while reading, one line that names the file and the line.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        self._kinds = [_kind(path) for path in self.files]

    def __iter__(self) -> Iterator[str]:
        for path, kind in zip(self.files, self._kinds, strict=True):
            if kind == ".parquet":
                yield from _parquet_texts(path)
            elif kind == ".jsonl":
                for where, line in numbered_lines(path):
                    yield _text_field(line, where)
            else:
                yield from (line for _, line in numbered_lines(path))


def _kind(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    kind = Path(name).suffix
    if kind not in (".txt", ".jsonl") and path.suffix != ".parquet":
        raise ValueError(f"--corpus {path}: expected .txt, .jsonl (either also .gz) or .parquet")
    return kind


def _text_field(line: str, where: str) -> str:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError(f"{where}: not valid JSON: nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("text"), str):
        raise ValueError(f"{where}: expected an object with a string 'text'")
    return str(content["text"])


def _parquet_texts(path: Path) -> Iterator[str]:
    try:
        with pa.parquet.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise ValueError(f"{path}: has no column 'text'")
            for batch in file.iter_batches(_ROWS, columns=["text"], use_threads=False):
                texts = batch.column(0).to_pylist()
                if not all(isinstance(text, str) for text in texts):
                    raise ValueError(f"{path}: its column 'text' holds what is no string")
                yield from texts
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from None

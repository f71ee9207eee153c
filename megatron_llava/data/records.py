"""LLaVA training records: one JSON list, or JSON lines, with the place where each record was read.

A record is an object with `conversations` (a list of turns), an optional `id` and an optional
`image` (one path or a list of paths, relative to the image folder). Every other key is ignored. The
layout is the one of LLaVA's published instruction files.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_llava.text.conversation import turns_from_record
from megatron_llava.text.templates import Turn


@dataclass(frozen=True, kw_only=True)
class Record:
    """One conversation with its images.

    Attributes:
        id: the record's own id as text, '' where it has none.
        images: image paths as written in the file, in the order of their placeholders.
        turns: at least one turn.
        source: 'file:line' for JSON lines, 'file: record 17 (id=...)' for a JSON list, counted
            from 0; it begins every message about the record.
    """

    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    source: str


class RecordFile:
    """The raw records of one file, in order.

    Iterating yields `(source, raw)`. `raw` is the unparsed line of a JSON lines file, or the
    decoded element of a JSON list; `parse_record` takes either, so a bad record is not a bad file.

    Raises:
        ValueError: the file is missing, has another suffix, holds no record, or is not a JSON list.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix not in (".json", ".jsonl"):
            raise ValueError(f"{self.path}: expected a .json or .jsonl file")
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such file")
        self._items: list[Any] | None = None
        if self.path.suffix == ".json":
            self._items = _read_json_list(self.path)
            self._count = len(self._items)
        else:
            with self.path.open("rb") as stream:
                self._count = sum(1 for line in stream if line.strip())
        if self._count == 0:
            raise ValueError(f"{self.path}: holds no record")

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        if self._items is not None:
            for index, item in enumerate(self._items):
                name = f" (id={item['id']})" if isinstance(item, dict) and "id" in item else ""
                yield f"{self.path}: record {index}{name}", item
            return
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield f"{self.path}:{number}", line


def _read_json_list(path: Path) -> list[Any]:
    try:
        items = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid UTF-8 at byte {error.start}") from error
    if not isinstance(items, list):
        raise ValueError(f"{path}: expected a JSON list of records, found {_kind(items)}")
    return items


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null"}
    return names.get(type(value), f"the value {value!r}")


def parse_record(raw: Any, source: str) -> Record:
    """Check one raw record of a `RecordFile`.

    Raises:
        ValueError: one line that starts with `source`.
    """
    if isinstance(raw, bytes):
        try:
            raw = json.loads(raw)
        except json.JSONDecodeError as error:
            raise ValueError(f"{source}: not valid JSON: {error.msg}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{source}: not valid UTF-8 at byte {error.start}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{source}: expected an object, found {_kind(raw)}")
    return Record(
        id=str(raw.get("id", "")),
        images=_images(raw.get("image"), source),
        turns=_turns(raw.get("conversations"), source),
        source=source,
    )


def _images(value: Any, source: str) -> tuple[str, ...]:
    if value is None:
        return ()
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise ValueError(f"{source}: 'image' must be a path or a list of paths")
    return tuple(paths)


def _turns(value: Any, source: str) -> tuple[Turn, ...]:
    if not value:
        raise ValueError(f"{source}: no 'conversations', expected a list of at least one turn")
    return tuple(turns_from_record(value, source))

"""Captions of records, and the share of them that one process has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_llava.data.mixture_file import open_records
from megatron_llava.data.records import parse_record


@dataclass(frozen=True, kw_only=True)
class CaptionSettings:
    """Where captions come from; counting and sampling have to agree in it.

    Attributes:
        input: what tools/preprocess_data.py reads, of .json or .jsonl files.
        caption_key: the field that is the caption; None for the answers of the conversation.
        seed: of a mixture's random choices, and of the draws.
        shard: (I, N), the share I of N.
    """

    input: Path
    data_root: Path | None = None
    caption_key: str | None = None
    seed: int = 0
    shard: tuple[int, int] = (0, 1)


class Captions:
    """The records of a share, in order, with their captions.

    Raises:
        ValueError: as `open_records`; a source that is not JSON; a shard that is none or is empty.
            While reading, a record without a caption, by the place where it is.
    """

    def __init__(self, settings: CaptionSettings) -> None:
        self._records = open_records(settings.input, settings.seed, settings.data_root)
        for part in self._records.parts:
            if part.file.path.suffix not in (".json", ".jsonl"):
                raise ValueError(
                    f"--input {part.file.path}: only records of .json and .jsonl files can be "
                    "sampled, since they are written as lines"
                )
        self._key = settings.caption_key
        number, count = settings.shard
        if not 0 <= number < count:
            raise ValueError(f"--shard {number}/{count}: shards are 0/N to N-1/N")
        self.total = len(self._records)
        self.begin, self.end = self.total * number // count, self.total * (number + 1) // count
        if self.begin == self.end:
            raise ValueError(f"--shard {number}/{count}: none of the {self.total} records is in it")

    def __len__(self) -> int:
        return self.end - self.begin

    def __iter__(self) -> Iterator[tuple[int, str, Any]]:
        """(number among all records, caption, raw record)."""
        share = self._records.between(self.begin, self.end)
        for number, (source, raw) in enumerate(share, start=self.begin):
            yield number, _caption(raw, source, self._key), raw


def as_line(raw: Any) -> bytes:
    """A raw record as a line of a .jsonl file; one that is a line stays as it is."""
    return raw.strip() + b"\n" if isinstance(raw, bytes) else json.dumps(raw).encode() + b"\n"


def _caption(raw: Any, source: str, key: str | None) -> str:
    if key is None:
        turns = parse_record(raw, source).turns
        return "\n".join(turn.text for turn in turns if turn.role == "gpt")
    try:
        content = json.loads(raw) if isinstance(raw, bytes) else raw
    except ValueError as error:
        raise ValueError(f"{source}: not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{source}: not valid JSON: nested too deeply") from None
    if not isinstance(content, dict) or not isinstance(content.get(key), str):
        raise ValueError(f"{source}: expected an object with a string {key!r} (--caption-key)")
    return str(content[key])

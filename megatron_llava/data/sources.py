"""What a name of records stands for: one file, the files of a folder, or those of a pattern."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from megatron_llava.data.arrow_records import STATE_FILE, ArrowRecords, ParquetRecords, saved_files
from megatron_llava.data.records import RecordFile
from megatron_llava.data.tar_records import TarRecords


class Source(Protocol):
    """Raw records with the place where each was found, in a fixed order."""

    path: Path

    def __len__(self) -> int: ...

    def chosen(self, wanted: NDArray[Any]) -> Iterator[tuple[str, Any]]:
        """Only the records that are wanted: bool [records]."""


class Several:
    """Some sources, one behind the other, as one."""

    def __init__(self, path: Path, sources: Sequence[Source]) -> None:
        self.path, self.sources = path, tuple(sources)

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def chosen(self, wanted: NDArray[Any]) -> Iterator[tuple[str, Any]]:
        first = 0
        for source in self.sources:
            yield from source.chosen(wanted[first : first + len(source)])
            first += len(source)


_KINDS: dict[str, Callable[[Path], Source]] = {
    ".json": RecordFile,
    ".jsonl": RecordFile,
    ".parquet": ParquetRecords,
    ".arrow": ArrowRecords,
    ".tar": TarRecords,
}
# `train-00000-of-00004`, in older repositories with a hash behind it.
_SPLIT = re.compile(r"([A-Za-z0-9_.]+)-[0-9]{5}-of-[0-9]{5}(-[0-9a-f]+)?")


def open_source(name: str | Path) -> Source:
    """A file by its suffix, a folder, or a pattern with `*` (`**` for any depth) and `?`.

    A folder is one that `datasets` saved, or holds parquet files at any depth, as the Hub's do.

    Raises:
        ValueError: one line naming what is missing, damaged or unclear.
    """
    path = Path(name)
    if path.is_dir():
        return _folder(path)
    if glob.has_magic(str(name)) and not path.exists():
        found = sorted(glob.glob(str(name), recursive=True))
        if not found:
            raise ValueError(f"{name}: no such file")
        return Several(path, [open_source(file) for file in found])
    if path.suffix not in _KINDS:
        known = ", ".join(_KINDS)
        raise ValueError(f"{path}: expected a folder, a pattern or one of {known}")
    return _KINDS[path.suffix](path)


def _folder(path: Path) -> Source:
    if (path / STATE_FILE).is_file():
        return Several(path, [ArrowRecords(file) for file in saved_files(path)])
    splits = sorted(file.parent for file in path.glob(f"*/{STATE_FILE}"))
    if splits:
        raise ValueError(f"{path}: give one of its splits: {', '.join(map(str, splits))}")
    files = sorted(path.rglob("*.parquet"))
    if not files:
        raise ValueError(f"{path}: holds neither parquet files nor a saved dataset")
    names = {match[1] for file in files if (match := _SPLIT.fullmatch(file.stem))}
    if len(names) > 1:
        raise ValueError(
            f"{path}: holds the splits {', '.join(sorted(names))}: choose with a pattern such as "
            f"'{path}/**/{sorted(names)[-1]}-*.parquet'"
        )
    return Several(path, [ParquetRecords(file) for file in files])

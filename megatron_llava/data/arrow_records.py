"""Records in parquet files, and in the folders that Hugging Face datasets saves.

Columns are those of a record: `conversations` (or `messages`), and `image` (or `images`) with
paths, bytes, or {bytes, path}. Rows are decoded as they are asked for, a few at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

COLUMNS = ("id", "image", "images", "video", "videos", "conversations", "messages")
STATE_FILE = "state.json"
_ROWS = 64  # decoded at once: their images are in memory


class ParquetRecords:
    """The rows of one parquet file.

    Raises:
        ValueError: the file cannot be read, or lacks a column.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such file")
        with _named(self.path):
            self._file = pa.parquet.ParquetFile(self.path)
        self._columns = _columns(self._file.schema_arrow, self.path)
        if len(self) == 0:
            raise ValueError(f"{self.path}: holds no record")

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def chosen(self, wanted: NDArray[Any]) -> Iterator[tuple[str, Any]]:
        """Only the rows that are wanted: bool [rows]. Row groups without one are not read."""
        first = 0
        for group in range(self._file.num_row_groups):
            end = first + self._file.metadata.row_group(group).num_rows
            if wanted[first:end].any():
                batches = self._file.iter_batches(
                    _ROWS, row_groups=[group], columns=self._columns, use_threads=False
                )
                yield from _rows(batches, wanted[first:end], first, self.path)
            first = end


class ArrowRecords:
    """The rows of one file of an Arrow stream, mapped into memory; errors as ParquetRecords."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such file")
        with _named(self.path):
            table = pa.ipc.open_stream(pa.memory_map(str(self.path))).read_all()
        self._table = table.select(_columns(table.schema, self.path))
        if len(self) == 0:
            raise ValueError(f"{self.path}: holds no record")

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def chosen(self, wanted: NDArray[Any]) -> Iterator[tuple[str, Any]]:
        """Only the rows that are wanted: bool [rows]."""
        return _rows(self._table.to_batches(_ROWS), wanted, 0, self.path)


def saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a folder that `datasets.Dataset.save_to_disk` wrote.

    Raises:
        ValueError: its state cannot be read, or its rows are in another order than in the files.
    """
    path = folder / STATE_FILE
    try:
        state = json.loads(path.read_bytes())
        names = [entry["filename"] for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the state of a saved dataset ({error!r})") from None
    if state.get("_indices_data_files") or (folder / "indices.arrow").exists():
        raise ValueError(
            f"{folder}: its rows were selected or shuffled without being written again; call "
            "flatten_indices() before save_to_disk()"
        )
    return [folder / name for name in names]


def _columns(schema: pa.Schema, path: Path) -> list[str]:
    if not {"conversations", "messages"} & set(schema.names):
        raise ValueError(
            f"{path}: has no column 'conversations' (or 'messages'), only {schema.names}"
        )
    return [name for name in COLUMNS if name in schema.names]


def _rows(
    batches: Iterable[pa.RecordBatch], wanted: NDArray[Any], first: int, path: Path
) -> Iterator[tuple[str, Any]]:
    """The wanted rows of some batches, whose first row is number `first` of the file."""
    start = 0
    with _named(path):
        for batch in batches:
            for row in np.flatnonzero(wanted[start : start + batch.num_rows]).tolist():
                content = batch.slice(row, 1).to_pylist()[0]
                yield _source(path, first + start + row, content), content
            start += batch.num_rows


def _source(path: Path, row: int, content: dict[str, Any]) -> str:
    name = f" (id={content['id']})" if content.get("id") is not None else ""
    return f"{path}: row {row}{name}"


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """An error of Arrow's as one line with the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: damaged or of another format ({reason})") from None

"""What an interrupted conversion has done, so that the next one goes on from there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

JOURNAL_FILE = ".journal.json"
LOCK_FILE = ".lock"


class Journal:
    """Results of finished steps, on disk before the next step begins.

    Args:
        folder: the unfinished output; the journal lies in it until `remove`.
        task: what is converted to what. A journal of another task counts as none.
    """

    def __init__(self, folder: Path, task: dict[str, Any]) -> None:
        self._path = folder / JOURNAL_FILE
        self._content: dict[str, Any] = {"task": task, "steps": {}}
        with contextlib.suppress(OSError, json.JSONDecodeError):
            found = json.loads(self._path.read_text(encoding="utf-8"))
            if found.get("task") == json.loads(json.dumps(task)):
                self._content = found

    @property
    def is_empty(self) -> bool:
        """Whether no step is done."""
        return not self._content["steps"]

    def result(self, step: str) -> Any:
        """What a finished step recorded; None for another."""
        return self._content["steps"].get(step)

    def record(self, step: str, result: Any) -> None:
        """Remember that a step is finished, with what later steps need of it."""
        self._content["steps"][step] = result
        written = self._path.with_suffix(".partial")
        written.write_text(json.dumps(self._content), encoding="utf-8")
        os.replace(written, self._path)

    def remove(self) -> None:
        """The output is complete."""
        self._path.unlink(missing_ok=True)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keep other processes out of an unfinished output; ValueError where one is in it."""
    path = folder / LOCK_FILE
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{folder}: another conversion is writing there") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

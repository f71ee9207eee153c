"""Files are brought to the disk while the next ones are being written."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

FLUSH_BYTES = 2**28
"""How much of a file is written before it is brought to the disk, so that the disk never waits."""


class Flusher:
    """A thread that waits for the disk. Leaving the context waits for it.

    What goes wrong there (a full disk) is raised by the next call, or on leaving.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._pending: list[Future[None]] = []

    def flush(self, path: Path, then: Callable[[], None] | None = None) -> None:
        """Bring what was written of a file (or folder) to the disk; call `then` in that thread."""
        self._raise_errors()
        self._pending.append(self._thread.submit(_flush, path, then))

    def _raise_errors(self) -> None:
        done = [future for future in self._pending if future.done()]
        self._pending = [future for future in self._pending if not future.done()]
        for future in done:
            future.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.shutdown()
        if error is None:
            self._raise_errors()


def _flush(path: Path, then: Callable[[], None] | None) -> None:
    descriptor = os.open(path, os.O_RDONLY)  # of a folder as well
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if then is not None:
        then()

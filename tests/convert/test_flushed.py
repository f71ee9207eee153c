"""Files reach the disk in another thread, and its errors reach this one."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from megatron_llava.convert.flushed import Flusher


def test_leaving_waits_for_all_in_order(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"content")
    seen: list[int] = []
    with Flusher() as flusher:
        for number in range(5):
            flusher.flush(path, lambda number=number: seen.append(number))
        flusher.flush(tmp_path, lambda: seen.append(5))
    assert seen == [0, 1, 2, 3, 4, 5]


def _full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_raised_on_leaving(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"), Flusher() as flusher:
        flusher.flush(tmp_path, _full_disk)


def test_an_error_of_the_caller_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Flusher() as flusher:
        flusher.flush(tmp_path, _full_disk)
        raise KeyboardInterrupt

"""Folders that appear under their final name only when they are complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_llava.convert.journal import LOCK_FILE, Journal, only_one

# Beside the tensors: configuration, tokenizer and headers.
SPARE_BYTES = 64 * 2**20


def refuse_existing(folder: Path) -> None:
    """ValueError where `folder` exists and is anything but an empty folder."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise ValueError(f"{folder}: already exists; give a new name or remove it first")


def check_room(final: Path, needed: int) -> None:
    """ValueError where the disk of a folder to be written has not so many bytes, and some more."""
    existing, pending = final.parent, pending_name(final)
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if pending.is_dir():
        free += sum(path.stat().st_size for path in pending.rglob("*") if path.is_file())
    if needed + SPARE_BYTES > free:
        raise ValueError(
            f"{final}: needs {needed + SPARE_BYTES:,} bytes and {free:,} are free; free some room "
            "or write elsewhere"
        )


def pending_name(final: Path) -> Path:
    """The unfinished folder of a final one: beside it, so that a rename is atomic."""
    return final.with_name(f".{final.name}.incomplete")


@contextmanager
def pending_folder(final: str | Path, task: dict[str, Any]) -> Iterator[tuple[Path, Journal]]:
    """Yield an unfinished folder and its journal; rename it on success.

    What an interruption (a signal, a full disk) left of the same task is taken up again. An error
    in what the user gave, or in the program, removes it.
    """
    final = Path(final)
    refuse_existing(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    pending = pending_name(final)
    pending.mkdir(exist_ok=True)
    with only_one(pending):
        journal = Journal(pending, task)
        if journal.is_empty:
            _clear(pending)
        try:
            yield pending, journal
            refuse_existing(final)
        except (KeyboardInterrupt, OSError, MemoryError):
            if journal.is_empty:
                shutil.rmtree(pending, ignore_errors=True)
            raise
        except BaseException:
            shutil.rmtree(pending, ignore_errors=True)
            raise
        journal.remove()
    pending.rename(final)


def _clear(folder: Path) -> None:
    """Remove what another task left, but for the lock of this process."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            os.unlink(path)

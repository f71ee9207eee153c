"""Folders that appear under their final name only when they are complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def refuse_existing(folder: Path) -> None:
    """ValueError where `folder` exists and is anything but an empty folder."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise ValueError(f"{folder}: already exists; give a new name or remove it first")


@contextmanager
def pending_folder(final: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `final`; rename it on success, remove it otherwise.

    Beside, so that the rename stays in one file system and is atomic.
    """
    final = Path(final)
    refuse_existing(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    pending = Path(tempfile.mkdtemp(prefix=f".{final.name}.incomplete-", dir=final.parent))
    try:
        yield pending
        # mkdtemp makes the folder private; the result gets the rights of any new folder.
        umask = os.umask(0)
        os.umask(umask)
        pending.chmod(0o777 & ~umask)
        refuse_existing(final)
        pending.rename(final)
    except BaseException:
        shutil.rmtree(pending, ignore_errors=True)
        raise

"""The history of a GPU's memory, written when it runs out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_ENTRIES = 100_000
"""Allocations that are remembered, the last ones: Megatron's number."""


def snapshot_file(path: str, rank: int) -> Path:
    """``snapshot.rank-3.pickle`` for ``snapshot.pickle``."""
    whole = Path(path)
    return whole.with_name(f"{whole.stem}.rank-{rank}{whole.suffix}")


@contextmanager
def memory_history(file: Path) -> Iterator[None]:
    """Record CUDA allocations in the block, and write them to a file when it ends.

    Where memory runs out the file is written at once, and one line says so before the error goes
    on.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.cuda.memory._record_memory_history(max_entries=_ENTRIES)
    try:
        yield
    except torch.OutOfMemoryError:
        torch.cuda.memory._dump_snapshot(str(file))
        print(f"GPU memory ran out: {file} has what was allocated", file=sys.stderr, flush=True)
        raise
    else:
        torch.cuda.memory._dump_snapshot(str(file))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)

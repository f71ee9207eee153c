"""Write and read core's layout-free ``torch_dist`` checkpoints, all ranks together.

A checkpoint is written under a temporary name and renamed when every rank has finished; only then
does the tracker name it. So a save that dies leaves the last good one in force.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.validation import StrictHandling
from torch.distributed.checkpoint.api import CheckpointException

from megatron_llava.parallel.checkpoint_directory import (
    TRACKER,
    CheckpointError,
    Iteration,
    iteration_directory,
)

_PARTIAL_SUFFIX = ".partial"


def save_sharded(
    root: str | Path,
    iteration: Iteration,
    state: dict[str, Any],
    checkpoint_format: str = "torch_dist",
    write_beside: Callable[[], None] | None = None,
) -> None:
    """Write a checkpoint on all ranks together and make it the latest.

    Args:
        checkpoint_format: core's name of the format.
        state: a sharded state dict of core: ShardedTensors and ShardedObjects of every rank, and
            plain objects that are equal on all ranks.
        write_beside: writes the files that belong beside the checkpoints, on the first rank, once
            the checkpoint is complete.

    Raises:
        CheckpointError: not enough room, or the write failed on some rank; the checkpoints that
            were there before are unchanged.
    """
    root = Path(root)
    final = iteration_directory(root, iteration)
    partial = final.with_name(final.name + _PARTIAL_SUFFIX)
    _check_room(root, state)

    def prepare() -> None:
        if _is_first_rank():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    def write() -> None:
        dist_checkpointing.save(state, str(partial), sharded_strategy=(checkpoint_format, 1))

    def publish() -> None:
        if _is_first_rank():
            if write_beside is not None:
                write_beside()
            _publish(partial, final, root / TRACKER, str(iteration))

    reason = _failure(prepare) or _failure(write) or _failure(publish)
    if reason:
        if _is_first_rank():
            shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{final}: the checkpoint could not be written ({reason}); the checkpoints before it "
            "are untouched"
        )


def _failure(action: Callable[[], None]) -> str | None:
    """Run a part of the work on every rank; None if all succeeded, else why the first one did not.

    Every rank learns of a failure, so that none waits for a rank that has left.
    """
    reason: str | None = None
    try:
        action()
    # Core and torch raise a dozen kinds, one of which is no Exception.
    except (Exception, CheckpointException) as caught:
        reason = _one_line(caught)
    if not _any_rank(reason is not None):
        return None
    reasons: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(reasons, reason)
    return next(said for said in reasons if said is not None)


def load_sharded(
    root: str | Path, iteration: Iteration, state: dict[str, Any], *, strict: bool = True
) -> dict[str, Any]:
    """Read a checkpoint into the layout of ``state``, whatever layout wrote it.

    Args:
        state: a sharded state dict whose tensors say which part this rank needs.
        strict: refuse a checkpoint that lacks a tensor of ``state``, or holds one that it lacks.

    Raises:
        CheckpointError: the folder is missing or the contents do not fit.
    """
    directory = iteration_directory(root, iteration)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such checkpoint")
    handling = StrictHandling.RAISE_ALL if strict else StrictHandling.ASSUME_OK_UNEXPECTED
    try:
        return dist_checkpointing.load(state, str(directory), strict=handling)
    # Core and torch raise a dozen kinds, one of which is no Exception.
    except (Exception, CheckpointException) as caught:
        raise CheckpointError(f"{directory}: {_one_line(caught)}") from caught


def _publish(partial: Path, final: Path, tracker: Path, text: str) -> None:
    """Give a complete checkpoint its name, then point the tracker at it, each atomically."""
    if final.exists():
        replaced = final.with_name(final.name + ".replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
        partial.rename(final)
        shutil.rmtree(replaced)
    else:
        partial.rename(final)
    written = tracker.with_name(tracker.name + _PARTIAL_SUFFIX)
    written.write_text(text)
    os.replace(written, tracker)


def _check_room(root: Path, state: dict[str, Any]) -> None:
    """Refuse to start a write that cannot fit on the disk."""
    needed = torch.tensor([_stored_bytes(state)], dtype=torch.int64)
    if dist.get_backend() == "nccl":
        needed = needed.cuda()
    dist.all_reduce(needed)
    existing = root
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if _any_rank(free < int(needed)):
        raise CheckpointError(
            f"{root}: a checkpoint needs {int(needed):,} bytes and {free:,} are free; free some "
            "room or point --save elsewhere"
        )


def _stored_bytes(state: Any) -> int:
    """Bytes of the tensors that this rank writes (replica 0 of each)."""
    if isinstance(state, dict):
        return sum(_stored_bytes(value) for value in state.values())
    if isinstance(state, (list, tuple)):
        return sum(_stored_bytes(value) for value in state)
    if isinstance(state, ShardedTensor) and state.data is not None:
        replica = state.replica_id
        main = replica == 0 if isinstance(replica, int) else not any(replica)
        return state.data.numel() * state.data.element_size() if main else 0
    return 0


def _any_rank(condition: bool) -> bool:
    """True on every rank when ``condition`` is true on one."""
    flag = torch.tensor([int(condition)])
    if dist.get_backend() == "nccl":
        flag = flag.cuda()
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def _is_first_rank() -> bool:
    return dist.get_rank() == 0


def _one_line(error: BaseException) -> str:
    """The last line of an error's text that says something, shortened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]

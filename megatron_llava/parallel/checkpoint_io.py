"""Write and read core's layout-free ``torch_dist`` checkpoints, all ranks together.

A checkpoint is written under a temporary name and renamed when every rank has finished; only then
does the tracker name it. So a save that dies leaves the last good one in force.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.base import (
    AsyncSaveShardedStrategy,
    StrategyAction,
    get_default_strategy,
)
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.validation import StrictHandling
from torch.distributed.checkpoint.api import CheckpointException

from megatron_llava.parallel.agreement import any_rank, failure, is_first_rank, one_line
from megatron_llava.parallel.background_write import BackgroundWrite, termination_waits
from megatron_llava.parallel.checkpoint_directory import (
    CheckpointError,
    Iteration,
    find_checkpoint,
    iteration_directory,
    partial_directory,
    publish,
    remove_leftovers,
)


class PendingSave:
    """A checkpoint that is being written: not there until ``finish`` says so."""

    def __init__(
        self,
        root: Path,
        iteration: Iteration,
        partial: Path,
        request: AsyncRequest,
        write_beside: Callable[[], None] | None,
    ) -> None:
        self.iteration = iteration
        self._root, self._partial = root, partial
        self._write_beside = write_beside
        self._writing = BackgroundWrite(request)

    def finish(self, *, wait: bool) -> bool:
        """Publish the checkpoint if every rank has written its part.

        Args:
            wait: until it is written, however long that takes.

        Returns:
            Whether it is there now; the same on every rank.

        Raises:
            CheckpointError: some rank could not write its part; it is named, and the checkpoints
                that were there before are unchanged.
        """
        if not self._writing.is_done(wait=wait):
            return False
        ended, collected = failure(self._writing.check), failure(self._writing.finalize)
        reason = ended or collected or failure(self._publish)
        if reason:
            raise _not_written(self._root, self.iteration, self._partial, reason)
        return True

    def _publish(self) -> None:
        if is_first_rank():
            if self._write_beside is not None:
                self._write_beside()
            publish(self._root, self.iteration, self._partial)


def start_save(
    root: str | Path,
    iteration: Iteration,
    state: dict[str, Any],
    *,
    checkpoint_format: str = "torch_dist",
    fully_parallel: bool = False,
    write_beside: Callable[[], None] | None = None,
) -> PendingSave:
    """Start to write a checkpoint on all ranks together; one at a time.

    Args:
        checkpoint_format: core's name of the format.
        fully_parallel: share the writing among data- and context-parallel ranks, which hold the
            same weights.
        state: a sharded state dict of core: ShardedTensors and ShardedObjects of every rank, and
            plain objects that are equal on all ranks. The caller may change the tensors as soon
            as this returns.
        write_beside: writes the files that belong beside the checkpoints, on the first rank, once
            the checkpoint is complete.

    Raises:
        CheckpointError: not enough room, or the write could not start on some rank; the
            checkpoints that were there before are unchanged.
    """
    root = Path(root)
    # No two attempts share a folder: the writer of a killed run may be alive yet.
    partial = partial_directory(root, iteration, _agreed_token())
    requests: list[AsyncRequest] = []

    def prepare() -> None:
        if is_first_rank():
            partial.mkdir(parents=True)

    def plan() -> None:
        requests.append(_plan_write(state, partial, checkpoint_format, fully_parallel))

    if is_first_rank():
        remove_leftovers(root)
    _check_room(root, state)
    reason = failure(prepare) or failure(plan)
    if reason:
        raise _not_written(root, iteration, partial, reason)
    return PendingSave(root, iteration, partial, requests[0], write_beside)


def save_sharded(root: str | Path, iteration: Iteration, state: dict[str, Any]) -> None:
    """Write a checkpoint on all ranks together and make it the latest; see ``start_save``."""
    start_save(root, iteration, state).finish(wait=True)


def _plan_write(
    state: dict[str, Any], partial: Path, checkpoint_format: str, fully_parallel: bool
) -> AsyncRequest:
    """Write the part that all ranks share, and say what each rank has to write."""
    strategy = get_default_strategy(StrategyAction.SAVE_SHARDED, checkpoint_format, 1)
    if fully_parallel:
        strategy = FullyParallelSaveStrategyWrapper(strategy, _replicas())
    meeting = _Meeting(strategy)
    try:
        with termination_waits():
            return dist_checkpointing.save(
                state, str(partial), sharded_strategy=meeting, async_sharded_save=True
            )
    except (Exception, CheckpointException):
        if not meeting.reached:
            any_rank(True)
        raise


class _Meeting(AsyncSaveShardedStrategy):
    """Where all ranks meet after the first one has written the shared part.

    Core goes on to collectives there, in which the others would wait for a first rank that failed.
    """

    def __init__(self, strategy: AsyncSaveShardedStrategy) -> None:
        super().__init__(strategy.backend, strategy.version)
        self._strategy = strategy
        self.reached = False

    def async_save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: Path) -> AsyncRequest:
        self.reached = True
        if any_rank(False):
            raise CheckpointException("write", {})
        return self._strategy.async_save(sharded_state_dict, checkpoint_dir)

    @property
    def can_handle_sharded_objects(self) -> bool:
        return bool(self._strategy.can_handle_sharded_objects)


def load_sharded(
    root: str | Path,
    iteration: Iteration,
    state: dict[str, Any],
    *,
    strict: bool = True,
    fully_parallel: bool = False,
) -> dict[str, Any]:
    """Read a checkpoint into the layout of ``state``, whatever layout wrote it.

    Args:
        state: a sharded state dict whose tensors say which part this rank needs.
        strict: refuse a checkpoint that lacks a tensor of ``state``, or holds one that it lacks.
        fully_parallel: read every tensor once among the data- and context-parallel ranks, which
            then send it to each other.

    Raises:
        CheckpointError: the folder is missing or the contents do not fit.
    """
    directory = find_checkpoint(root, iteration)
    if directory is None:
        raise CheckpointError(f"{iteration_directory(root, iteration)}: no such checkpoint")
    handling = StrictHandling.RAISE_ALL if strict else StrictHandling.ASSUME_OK_UNEXPECTED
    try:
        strategy = get_default_load_sharded_strategy(str(directory))
        if fully_parallel:
            strategy = FullyParallelLoadStrategyWrapper(strategy, _replicas())
        return dist_checkpointing.load(state, str(directory), strategy, strict=handling)
    # Core and torch raise a dozen kinds, one of which is no Exception.
    except (Exception, CheckpointException) as caught:
        raise CheckpointError(f"{directory}: {one_line(caught)}") from caught


def _replicas() -> dist.ProcessGroup:
    """The ranks that hold the same weights as this one."""
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def _not_written(root: Path, iteration: Iteration, partial: Path, reason: str) -> CheckpointError:
    if is_first_rank():
        shutil.rmtree(partial, ignore_errors=True)
    return CheckpointError(
        f"{iteration_directory(root, iteration)}: the checkpoint could not be written ({reason}); "
        "the checkpoints before it are untouched"
    )


def _agreed_token() -> str:
    """A random word, the same on every rank."""
    token = [secrets.token_hex(4)]
    dist.broadcast_object_list(token, src=0)
    return token[0]


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
    if any_rank(free < int(needed)):
        raise CheckpointError(
            f"{root}: a checkpoint needs {int(needed):,} bytes and {free:,} are free; free some "
            "room or point --save elsewhere"
        )


def _stored_bytes(state: Any) -> int:
    """Bytes of the tensors that are written from this rank's copy (replica 0 of each)."""
    if isinstance(state, dict):
        return sum(_stored_bytes(value) for value in state.values())
    if isinstance(state, (list, tuple)):
        return sum(_stored_bytes(value) for value in state)
    if isinstance(state, (ShardedTensor, ShardedTensorFactory)) and state.data is not None:
        replica = state.replica_id
        main = replica == 0 if isinstance(replica, int) else not any(replica)
        return state.data.numel() * state.data.element_size() if main else 0
    return 0

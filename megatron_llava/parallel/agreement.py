"""Have all ranks agree on whether a part of their common work failed, and why."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException


def failure(action: Callable[[], None]) -> str | None:
    """Run a part of the work on every rank; None if all succeeded, else who failed first and why.

    Every rank learns of a failure, so that none waits for a rank that has left.
    """
    reason: str | None = None
    try:
        action()
    # Core and torch raise a dozen kinds, one of which is no Exception.
    except (Exception, CheckpointException) as caught:
        reason = _said(caught)
    if not any_rank(reason is not None):
        return None
    reasons: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(reasons, reason)
    return next((said for said in reasons if said), "no rank said why")


def any_rank(condition: bool) -> bool:
    """True on every rank when ``condition`` is true on one."""
    flag = torch.tensor([int(condition)])
    if dist.get_backend() == "nccl":
        flag = flag.cuda()
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def is_first_rank() -> bool:
    """Whether this rank is the one that handles the files that all ranks share."""
    return dist.get_rank() == 0


def one_line(error: BaseException) -> str:
    """The last line of an error's text that says something, shortened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def _said(error: BaseException) -> str:
    """An error in one line that names its rank; nothing where it only repeats another rank's."""
    if not isinstance(error, CheckpointException):
        return f"rank {dist.get_rank()}: {one_line(error)}"
    # Torch collects what every rank met on the first one, and tells the others that it did.
    failures = sorted(error.failures.items())
    return f"rank {failures[0][0]}: {one_line(failures[0][1][0])}" if failures else ""

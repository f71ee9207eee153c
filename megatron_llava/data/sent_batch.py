"""A batch on its way from a worker: its pixels through shared memory where there is room.

Through a pipe they would be copied four times, twice of them by the trainer. Where shared memory is
full a process dies of a bus error, and containers often have 64 MB: then the pipe it is.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_llava.data.packed_batch import PackedBatch

SHARED_MEMORY = "/dev/shm"
# Batches of each worker that may be there at once: torch's prefetch, one made, one in use.
_BATCHES = 4


class Sent(NamedTuple):
    """A batch without its pixels, and those as a tensor, which torch sends by shared memory."""

    batch: PackedBatch
    tiles: Tensor


def sendable(batch: PackedBatch, num_workers: int) -> PackedBatch | Sent:
    """What a worker of so many hands over; a batch as it is where there are no workers."""
    if num_workers == 0 or batch.tiles is None:
        return batch
    if _free() < _BATCHES * num_workers * batch.tiles.nbytes:
        return batch
    return Sent(replace(batch, tiles=None), torch.from_numpy(batch.tiles))


def received(sent: PackedBatch | Sent) -> PackedBatch:
    """The batch."""
    if isinstance(sent, PackedBatch):
        return sent
    return replace(sent.batch, tiles=sent.tiles.numpy())


def _free() -> int:
    """Bytes of shared memory that are free; 0 where there is none."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize

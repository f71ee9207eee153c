"""Answers by several ranks: tensor-parallel ones share a model, each model has its questions."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist
from megatron.core import parallel_state

from megatron_llava.config.parallel import ParallelConfig
from megatron_llava.parallel.groups import initialize_groups
from megatron_llava.platform.device import join_process_group

_MINUTES = 24 * 60
"""Ranks meet again when the slowest model has its answers."""

Row = TypeVar("Row")


def join_ranks(device: str, tensor_parallel: int) -> None:
    """Start torch.distributed and core's groups over the ranks that torchrun started."""
    join_process_group(device, _MINUTES)
    initialize_groups(
        ParallelConfig(
            device="cuda" if device == "cuda" else "cpu",
            tensor_model_parallel_size=tensor_parallel,
            distributed_timeout_minutes=_MINUTES,
        )
    )


def in_order(mine: list[Row]) -> list[Row]:
    """The rows of all models, of which each has those of every so many-th question, its own first.

    Args:
        mine: of this rank's model, in order.
    """
    models = parallel_state.get_data_parallel_world_size()
    shares: list[list[Row]] = [[] for _ in range(models)]
    dist.all_gather_object(shares, mine, group=parallel_state.get_data_parallel_group())
    total = sum(map(len, shares))
    return [shares[number % models][number // models] for number in range(total)]

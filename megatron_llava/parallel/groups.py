"""Megatron-core's process groups, and the random states that belong to them."""

from __future__ import annotations

import random

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_llava.config.parallel import ParallelConfig

_SEEDS_OF_A_REPLICA = 100_000
"""More than core adds for tensor-parallel ranks, and we for pipeline stages."""


def initialize_groups(parallel: ParallelConfig, virtual_stages: int | None = None) -> None:
    """Create the tensor-, context-, pipeline- and data-parallel groups over the running processes.

    Args:
        virtual_stages: virtual pipeline stages on each rank, None for one ordinary stage.
    """
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=virtual_stages,
        context_parallel_size=parallel.context_parallel_size,
        distributed_timeout_minutes=int(parallel.distributed_timeout_minutes),
    )


def destroy_groups() -> None:
    """Undo ``initialize_groups``."""
    parallel_state.destroy_model_parallel()


def set_seed(seed: int) -> None:
    """Seed python, numpy, torch and core's tracker, as Megatron does: per pipeline stage."""
    stage_seed = _stage_seed(seed)
    random.seed(stage_seed)
    np.random.seed(stage_seed)
    _seed_torch(stage_seed)


def seed_dropout(seed: int) -> None:
    """Let ranks with the same weights drop other places: of data- and context-parallel ones, whose
    positions are others too. After the weights have been drawn, which are the same."""
    replica = parallel_state.get_data_parallel_rank(with_context_parallel=True)
    _seed_torch(_stage_seed(seed) + _SEEDS_OF_A_REPLICA * replica)


def _stage_seed(seed: int) -> int:
    return seed + 100 * parallel_state.get_pipeline_model_parallel_rank()


def _seed_torch(seed: int) -> None:
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed, force_reset_rng=True)

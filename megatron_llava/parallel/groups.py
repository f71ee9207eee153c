"""Megatron-core's process groups, and the random states that belong to them."""

from __future__ import annotations

import random

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_llava.config.parallel import ParallelConfig


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
    stage_seed = seed + 100 * parallel_state.get_pipeline_model_parallel_rank()
    random.seed(stage_seed)
    np.random.seed(stage_seed)
    torch.manual_seed(stage_seed)
    model_parallel_cuda_manual_seed(stage_seed, force_reset_rng=True)

"""Megatron-core in one CPU process, for conversions: no torchrun, no GPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from megatron_llava.config.parallel import ParallelConfig
from megatron_llava.platform.device import (
    join_process_group,
    leave_process_group,
    set_up_device,
)
from megatron_llava.platform.torchrun import world_size


@contextmanager
def single_process() -> Iterator[None]:
    """A world of one gloo rank with core's groups; what is there of it already is used as it is.

    ValueError under torchrun with more than one process.
    """
    running = dist.get_world_size() if dist.is_initialized() else world_size()
    if running > 1:
        raise ValueError(f"conversion is one process, but {running} are running; use plain python")
    set_up_device("cpu")
    from megatron.core.parallel_state import model_parallel_is_initialized

    from megatron_llava.parallel.groups import destroy_groups, initialize_groups

    with warnings.catch_warnings():
        # Deprecations inside core and torch's checkpoint reader; nothing that a user can act on.
        warnings.filterwarnings("ignore", module=r"megatron\.core|torch\.distributed")
        joined, has_groups = dist.is_initialized(), model_parallel_is_initialized()
        if not joined:
            join_process_group("cpu", timeout_minutes=10)
        try:
            if not has_groups:
                initialize_groups(ParallelConfig(device="cpu"))
            yield
        finally:
            if not has_groups:
                destroy_groups()
            if not joined:
                leave_process_group()

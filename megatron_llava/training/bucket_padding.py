"""What core gathers of padded buckets for a fully reshardable checkpoint, put where it belongs.

Core's distributed optimizer pads every bucket to a multiple of the ranks that share it. To save, it
joins the buckets without that padding (``get_parameter_state_dp_zero``) and then slices the result
by places that count it (``param_index_map``): behind the first padded bucket, every parameter would
be saved with its neighbours' numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer import distrib_optimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer


def place_gathered(part: MegatronOptimizer, content: dict[str, Any]) -> None:
    """Correct the state of one of core's optimizers before it is saved.

    Args:
        content: what its ``sharded_state_dict`` gave, of whichever kind.
    """
    if content.get("param_state_sharding_type") != "fully_reshardable":
        return
    entries = iter(content["param_state"].values())
    for buffer in part.buffers:
        padding = _padding_before(buffer)
        places = list(buffer.param_index_map.values())
        states = [next(entries) for _ in places]
        if not any(padding):
            continue
        joined = _joined(states, places, buffer.numel_unpadded)
        for state, (start, end, bucket) in zip(states, places, strict=True):
            for name, tensor in joined.items():
                entry, shift = state[name], padding[bucket]
                entry.data = tensor[start - shift : end - shift].view(entry.data.shape)


@contextmanager
def without_core_warning() -> Iterator[None]:
    """Leave out that data may be corrupt, which core logs of what is put right here."""
    logger = logging.getLogger(distrib_optimizer.__name__)

    def is_other(record: logging.LogRecord) -> bool:
        return "exceeds unpadded buffer" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _padding_before(buffer: Any) -> list[int]:
    """Elements of padding in front of each bucket."""
    padding, before = [], 0
    for bucket in buffer.buckets:
        padding.append(before)
        before += bucket.grad_data.numel() - bucket.numel_unpadded
    return padding


def _joined(
    states: list[dict[str, Any]], places: list[tuple[int, int, int]], numel: int
) -> dict[str, torch.Tensor]:
    """The joined buckets [numel] of each kind of state, of which core's slices are views."""
    first = min(range(len(places)), key=lambda number: places[number][0])
    assert places[first][0] == 0
    joined = {}
    for name, entry in states[first].items():
        if not isinstance(entry, (ShardedTensor, ShardedTensorFactory)):
            continue
        storage = entry.data.untyped_storage()
        assert storage.nbytes() == numel * entry.data.element_size(), (name, numel)
        joined[name] = torch.empty(0, dtype=entry.data.dtype).set_(storage, 0, (numel,))
    return joined

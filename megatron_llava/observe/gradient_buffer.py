"""The buffer in which core's data-parallel wrapper keeps the gradients of a part of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from megatron_llava.config.run import RunConfig
from megatron_llava.observe.parameters import Parameter
from megatron_llava.observe.parts import Part

_PARAMETER_START, _BUCKET_END = 64, 128
"""Multiples, in elements, to which core pads the distributed optimizer's buffers."""


def bucket_size(config: RunConfig, part: Part, data_ranks: int) -> int | None:
    """Elements at which a bucket is full, None where there is one."""
    parallel = config.parallel
    if not parallel.overlap_grad_reduce or not part.bucketed:
        return None
    return parallel.ddp_bucket_size or max(40_000_000, 1_000_000 * data_ranks)


def is_vocabulary(parameter: Parameter) -> bool:
    """Whether tied embeddings on two stages share it, which gives it a bucket of its own."""
    return "word_embeddings" in parameter.name or "output_layer" in parameter.name


def padded_numel(
    parameters: Sequence[Parameter],
    alone: set[Parameter],
    bucket_size: int | None,
    data_ranks: int,
) -> int:
    """Elements of the distributed optimizer's buffer: its buckets in backward order, padded.

    Args:
        parameters: those that learn, in the order in which the model registers them.
        alone: parameters that have a bucket of their own.
        bucket_size: elements at which a bucket is full, None for one bucket.
        data_ranks: data- times context-parallel ranks.
    """
    multiple = math.lcm(data_ranks, _BUCKET_END)
    bucket_start = end = 0
    for parameter in reversed(parameters):
        end = _up(end, _PARAMETER_START)
        if parameter in alone and end > bucket_start:
            bucket_start = end = _up(end, multiple)
        end += parameter.numel
        is_full = bucket_size is not None and end - bucket_start >= bucket_size
        if is_full or parameter in alone:
            bucket_start = end = _up(end, multiple)
    return _up(end, multiple)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple

"""Which linears of a decoder layer adapters stand beside, and which part of a linear is whose."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_llava.config.lora import PARTS, targeted_parts

ADAPTER = "lora"
"""Name of the module that a linear holds its adapter under."""


def is_adapter(name: str) -> bool:
    """Whether a parameter of LlavaModel, or its key in a checkpoint, is an adapter's."""
    return f".{ADAPTER}." in name


def part_of_outputs(linear: str, config: TransformerConfig, outputs: int, rank: int) -> list[int]:
    """For each output of one rank's share of a linear, the index in PARTS of its part.

    Query, key and value rows are interleaved: by query group its query heads, its key, its value.
    A share begins anywhere in that order where there are fewer groups than ranks. Of the gate and
    the input half of SwiGLU each rank has its share, one after the other.

    Args:
        linear: a key of PARTS.
        outputs: rows of the weight on this rank.
        rank: which of the tensor-parallel ranks that split the rows this is.
    """
    if linear == "linear_fc1":
        sizes = [outputs // 2] * 2
    elif linear == "linear_qkv":
        heads = config.num_attention_heads // config.num_query_groups
        group = [size * config.kv_channels for size in (heads, 1, 1)]
        whole = _spread(group) * config.num_query_groups
        return whole[rank * outputs : (rank + 1) * outputs]
    else:
        sizes = [outputs]
    return _spread(sizes)


def _spread(sizes: Sequence[int]) -> list[int]:
    """0 as often as the first size says, then 1 as often as the second, ..."""
    bounds = pairwise(accumulate(sizes, initial=0))
    return [part for part, (start, end) in enumerate(bounds) for _ in range(start, end)]


def part_mask(linear: str, targets: Sequence[str], part_of_output: Sequence[int]) -> torch.Tensor:
    """bool [outputs, targeted parts]: which outputs the adapter of each targeted part adds to."""
    indices = [PARTS[linear].index(part) for part in targeted_parts(linear, targets)]
    return torch.tensor(part_of_output)[:, None] == torch.tensor(indices)[None]

"""A job for the pool: attention over context-parallel ranks beside attention on one."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch
import torch.distributed as dist

from megatron_llava.data.share import rows_of_rank
from megatron_llava.ops.attention import packed_attention
from megatron_llava.ops.exchange import context_parallel_attention


def attention_difference(heads: int, groups: int, chunks: list[int], dtype: str) -> list[float]:
    """Largest differences of output and gradients of q, k, v from attention on one rank.

    Args:
        chunks: lengths of the sequences in units of 2 * ranks.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    lengths = [chunk * 2 * ranks for chunk in chunks]
    bounds = np.array([0, *accumulate(lengths)], dtype=np.int32)
    cu_seqlens, longest = torch.from_numpy(bounds), max(lengths)
    generator = torch.Generator().manual_seed(0)
    shapes = [(heads, 8), (groups, 8), (groups, 8)]
    whole = [
        torch.randn(bounds[-1], *shape, generator=generator, dtype=torch.float64)
        .to(getattr(torch, dtype))
        .requires_grad_()
        for shape in shapes
    ]
    upstream = torch.randn(bounds[-1], heads * 8, generator=generator).to(getattr(torch, dtype))
    expected = packed_attention(*whole, cu_seqlens, longest, causal=True, scale=0.3)
    expected.backward(upstream)
    orders = [rows_of_rank(bounds, other, ranks) for other in range(ranks)]
    rows = torch.from_numpy(orders[rank])
    mine = [tensor.detach()[rows].requires_grad_() for tensor in whole]
    order = torch.from_numpy(np.concatenate(orders))
    found = context_parallel_attention(
        *mine, cu_seqlens, longest, order, dist.group.WORLD, scale=0.3
    )
    found.backward(upstream[rows])
    pairs = [(found, expected[rows])]
    pairs += [(own.grad, all_.grad[rows]) for own, all_ in zip(mine, whole, strict=True)]
    return [float((one.double() - other.double()).abs().max()) for one, other in pairs]

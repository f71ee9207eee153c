"""All-to-all exchanges between ranks that share a pack, differentiable.

Shape suffixes: T rows of a rank, C context-parallel ranks, N query heads, G key/value heads, D
channels, U rows received, E rows sent, P rows of the whole pack (T * C).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from megatron_llava.ops.attention import packed_attention


def exchange_rows(
    rows_ED: torch.Tensor,
    send_counts: Sequence[int],
    receive_counts: Sequence[int],
    group: dist.ProcessGroup,
) -> torch.Tensor:
    """Send rows to every rank of a group and receive theirs, in the order of the ranks.

    Args:
        rows_ED: the rows for the first rank, then those for the second, ...
        send_counts: how many rows go to each rank; they sum to E.
        receive_counts: how many come from each; they sum to U.

    Returns:
        [U, D]. The backward sends the gradients the same way back.
    """
    return _AllToAll.apply(rows_ED, list(send_counts), list(receive_counts), group)


def context_parallel_attention(
    query_TND: torch.Tensor,
    key_TGD: torch.Tensor,
    value_TGD: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    row_order_P: torch.Tensor,
    group: dist.ProcessGroup,
    *,
    scale: float,
    backend: str = "auto",
) -> torch.Tensor:
    """Causal attention within each sequence of a pack whose positions lie on C ranks.

    One all-to-all gives each rank all positions of N / C heads, a second one brings the results
    back (DeepSpeed-Ulysses, arXiv:2309.14509). Key/value heads that C does not divide are repeated
    first.

    Args:
        cu_seqlens: int32, of the whole pack.
        row_order_P: the positions that the ranks hold, rank after rank.
        backend: as ``packed_attention``.

    Returns:
        [T, N * D], the rows of this rank.
    """
    ranks, heads = group.size(), query_TND.shape[1]
    assert heads % ranks == 0, f"{heads} heads over {ranks} context-parallel ranks"
    repeats = math.lcm(key_TGD.shape[1], ranks) // key_TGD.shape[1]
    parts = [query_TND]
    for tensor in (key_TGD, value_TGD):
        parts.append(tensor.repeat_interleave(repeats, dim=1) if repeats > 1 else tensor)
    # One exchange carries all three: of each, the heads for rank 0 first, then those for rank 1.
    blocks_TCMD = torch.cat([part.unflatten(1, (ranks, -1)) for part in parts], dim=2)
    mine_PMD = _swap(blocks_TCMD.transpose(0, 1).contiguous(), group).flatten(0, 1)
    in_order_PMD = torch.empty_like(mine_PMD).index_copy(0, row_order_P, mine_PMD)
    query, key, value = in_order_PMD.split([part.shape[1] // ranks for part in parts], dim=1)
    out_PX = packed_attention(
        query, key, value, cu_seqlens, max_seqlen, causal=True, scale=scale, backend=backend
    )
    by_rank_CTX = out_PX.index_select(0, row_order_P).unflatten(0, (ranks, -1))
    return _swap(by_rank_CTX.contiguous(), group).transpose(0, 1).flatten(1)


def _swap(blocks: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Block j of rank i becomes block i of rank j."""
    counts = [1] * group.size()
    return _AllToAll.apply(blocks, counts, counts, group)


class _AllToAll(torch.autograd.Function):
    """``all_to_all_single`` along the first dimension, and the way back."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        send_counts: list[int],
        receive_counts: list[int],
        group: dist.ProcessGroup,
    ) -> torch.Tensor:
        ctx.counts, ctx.group = (send_counts, receive_counts), group
        received = rows.new_empty(sum(receive_counts), *rows.shape[1:])
        dist.all_to_all_single(received, rows.contiguous(), receive_counts, send_counts, group)
        return received

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        send_counts, receive_counts = ctx.counts
        returned = grad.new_empty(sum(send_counts), *grad.shape[1:])
        dist.all_to_all_single(returned, grad.contiguous(), send_counts, receive_counts, ctx.group)
        return returned, None, None, None

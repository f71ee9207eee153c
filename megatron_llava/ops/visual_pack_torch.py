"""The visual packing operator in plain torch: the reference, and what runs without a compiler.

Shape suffixes: see visual_pack.py.
"""

from __future__ import annotations

from typing import Any

import torch


def visual_pack_torch(
    features_FH: torch.Tensor,
    specials_SH: torch.Tensor,
    text_embeddings_NH: torch.Tensor,
    positions_PH: torch.Tensor,
    taps_RK: torch.Tensor,
    weights_RK: torch.Tensor,
    feature_positions_F: torch.Tensor,
) -> torch.Tensor:
    """As ``visual_pack``, without the plan's transpose."""
    table_MH = torch.cat((features_FH, specials_SH, text_embeddings_NH))
    if not len(positions_PH):
        return _RowSum.apply(table_MH, taps_RK, weights_RK)
    # The positions are a fourth part of the table, and each tap of a feature brings another one.
    none = feature_positions_F.new_full((len(table_MH) - len(features_FH),), -1)
    position_RK = torch.cat((feature_positions_F, none))[taps_RK]
    has_position = position_RK >= 0
    taps = torch.cat((taps_RK, (position_RK + len(table_MH)).where(has_position, 0)), dim=1)
    weights = torch.cat((weights_RK, weights_RK.where(has_position, 0.0)), dim=1)
    return _RowSum.apply(torch.cat((table_MH, positions_PH)), taps, weights)


class _RowSum(torch.autograd.Function):
    """The sparse row operator on one table, and its transpose."""

    @staticmethod
    def forward(
        ctx: Any, table_MH: torch.Tensor, taps_RK: torch.Tensor, weights_RK: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(taps_RK, weights_RK)
        ctx.table_rows = table_MH.shape[0]
        out_RH = _zeros_to_sum_in(table_MH, taps_RK.shape[0])
        for rows, tap, weight in _used(taps_RK, weights_RK):
            out_RH.index_add_(0, rows, table_MH.index_select(0, tap).to(out_RH.dtype).mul_(weight))
        return out_RH.to(table_MH.dtype)

    @staticmethod
    def backward(ctx: Any, grad_RH: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        grad_MH = _zeros_to_sum_in(grad_RH, ctx.table_rows)
        for rows, tap, weight in _used(*ctx.saved_tensors):
            grad_MH.index_add_(0, tap, grad_RH.index_select(0, rows).to(grad_MH.dtype).mul_(weight))
        return grad_MH.to(grad_RH.dtype), None, None


def _zeros_to_sum_in(like: torch.Tensor, rows: int) -> torch.Tensor:
    """Zeros [rows, H] in float32, or in float64 for float64."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return like.new_zeros(rows, like.shape[1], dtype=dtype)


def _used(
    taps_RK: torch.Tensor, weights_RK: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """For each tap column in use: packed rows [U], their table rows [U] and weights [U, 1]."""
    columns = []
    for tap in range(taps_RK.shape[1]):
        rows = weights_RK[:, tap].nonzero().squeeze(1)
        if rows.numel():
            columns.append((rows, taps_RK[rows, tap], weights_RK[rows, tap, None]))
    return columns

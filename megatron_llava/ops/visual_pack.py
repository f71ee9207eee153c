"""The visual packing operator: every merge rule is a sparse sum of rows.

Shape suffixes: F feature rows (all views of the pack), S special rows, N text rows, R packed rows,
H hidden size, K taps per row (4), M table rows (F + S + N).
"""

from __future__ import annotations

from typing import Any

import torch


def visual_pack(
    features_FH: torch.Tensor,
    specials_SH: torch.Tensor,
    text_embeddings_NH: torch.Tensor,
    taps_RK: torch.Tensor,
    weights_RK: torch.Tensor,
) -> torch.Tensor:
    """Build the rows of a pack from projected views, special rows and text embeddings.

    ``out[r] = sum over k of weights[r, k] * table[taps[r, k]]``, where ``table`` is the three
    inputs one below the other: tap t names feature row t, special row t - F, or text row t - F - S.
    Rows that are copied have one tap of weight 1; bilinear rows have up to four; padding rows have
    none and are exactly zero. Differentiable in the three tables.

    Args:
        features_FH: projected visual features, any floating dtype.
        specials_SH: special rows in the same dtype; row 0 is ``image_newline``.
        text_embeddings_NH: embeddings of the text tokens of the pack.
        taps_RK: int64 row numbers into the table.
        weights_RK: float32 weights; 0 marks an unused tap, whatever row it names.

    Returns:
        Packed rows [R, H] in the dtype of ``text_embeddings_NH``. Sums are formed in float32 and
        rounded once, in the backward as well: ``image_newline`` has thousands of uses in a pack.
    """
    table_MH = torch.cat((features_FH, specials_SH, text_embeddings_NH))
    return _RowSum.apply(table_MH, taps_RK, weights_RK)


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

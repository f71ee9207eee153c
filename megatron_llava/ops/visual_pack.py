"""The visual packing operator: every merge rule is a sparse sum of rows.

Shape suffixes: F feature rows (all views of the pack), S special rows, N text rows, R packed rows,
H hidden size, K taps per row (4).
"""

from __future__ import annotations

import torch


def visual_pack(
    features_FH: torch.Tensor,
    specials_SH: torch.Tensor,
    text_embeddings_NH: torch.Tensor,
    taps_RK: torch.Tensor,
    weights_RK: torch.Tensor,
) -> torch.Tensor:
    """Build the rows of a pack from projected views, special rows and text embeddings.

    ``out[r] = sum over k of weights[r, k] * table[taps[r, k]]``, where ``table`` is the three inputs one
    below the other: tap t names feature row t, special row t - F, or text row t - F - S. Rows that
    are copied have one tap of weight 1; bilinear rows have up to four; padding rows have none and
    are exactly zero. Differentiable in the three tables.

    Args:
        features_FH: projected visual features, any floating dtype.
        specials_SH: special rows in the same dtype; row 0 is ``image_newline``.
        text_embeddings_NH: embeddings of the text tokens of the pack.
        taps_RK: int64 row numbers into the table.
        weights_RK: float32 weights; 0 marks an unused tap.

    Returns:
        Packed rows [R, H] in the dtype of ``text_embeddings_NH``. Sums are formed in float32.
    """
    table = torch.cat((features_FH, specials_SH, text_embeddings_NH))
    packed_RH = table.index_select(0, taps_RK[:, 0])
    one_tap = not bool((weights_RK[:, 1:] != 0).any())
    first_R1 = weights_RK[:, :1]
    if one_tap:
        return packed_RH * first_R1.to(packed_RH.dtype)
    total_RH = packed_RH.float() * first_R1
    for tap in range(1, taps_RK.shape[1]):
        rows = weights_RK[:, tap].nonzero().squeeze(1)
        if rows.numel():
            term = table.index_select(0, taps_RK[rows, tap]).float() * weights_RK[rows, tap, None]
            total_RH = total_RH.index_add(0, rows, term)
    return total_RH.to(table.dtype)

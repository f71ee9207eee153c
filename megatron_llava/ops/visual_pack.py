"""The visual packing operator: every merge rule is a sparse sum of rows.

Shape suffixes: F feature rows (all views of the pack), S special rows, N text rows, R packed rows,
H hidden size, K taps per row (4), M table rows (F + S + N), U uses of table rows, P positions of
tiles in an image, V views.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from megatron_llava.data.packed_batch import TensorBatch
from megatron_llava.ops.operators import compiled_for
from megatron_llava.ops.visual_pack_torch import visual_pack_torch


class PackPlan(NamedTuple):
    """Which table rows each packed row is the sum of, and the transpose of that."""

    taps: torch.Tensor
    """int64 [R, K], table rows: t names feature row t, special row t - F, or text row t - F - S."""

    weights: torch.Tensor
    """float32 [R, K]; 0 marks an unused tap, whatever row it names."""

    csr_offsets: torch.Tensor
    """int64 [M + 1], the uses of table row t are csr_offsets[t] to csr_offsets[t + 1]."""

    csr_rows: torch.Tensor
    """int64 [U], the packed row of each use."""

    csr_weights: torch.Tensor
    """float32 [U], the weight of each use."""

    feature_positions: torch.Tensor
    """int64 [F], the position of each feature's tile, -1 for none; [0] where none is used."""

    view_bounds: torch.Tensor
    """int64 [V + 1], the features of view v are view_bounds[v] to view_bounds[v + 1], and have one
    position; [0] where none is used."""

    @classmethod
    def of(cls, batch: TensorBatch) -> PackPlan:
        """The plan that a batch brings along."""
        return cls(*(getattr(batch, name) for name in cls._fields))


def visual_pack(
    features_FH: torch.Tensor,
    specials_SH: torch.Tensor,
    text_embeddings_NH: torch.Tensor,
    plan: PackPlan,
    positions_PH: torch.Tensor | None = None,
) -> torch.Tensor:
    """Build the rows of a pack from projected views, special rows and text embeddings.

    ``out[r] = sum over k of weights[r, k] * table[taps[r, k]]``, where ``table`` is the three
    inputs one below the other. Rows that are copied have one tap of weight 1; bilinear rows have up
    to four; padding rows have none and are exactly zero. Where ``positions`` are given, feature row
    t is ``features[t] + positions[feature_positions[t]]``, and that sum is never stored.
    Differentiable in all tables.

    The same inputs give the same bits, in the gradients as well, with any number of threads; the
    compiled operator gives the same bits on every processor.

    Args:
        features_FH: projected visual features: float32, float64, bfloat16 or float16.
        specials_SH: special rows in the same dtype; row 0 is ``image_newline``.
        text_embeddings_NH: embeddings of the text tokens of the pack, in the same dtype.
        plan: on the device of the tables.
        positions_PH: learned rows, one for each place of a tile in an image, in the same dtype.

    Returns:
        Packed rows [R, H] in the dtype of the tables. Sums are formed in float32 (float64 for
        float64) and rounded once, in the backward as well: ``image_newline`` has thousands of uses
        in a pack.
    """
    if positions_PH is None:
        positions_PH = features_FH.new_empty(0, features_FH.shape[1])
    tables = features_FH, specials_SH, text_embeddings_NH, positions_PH
    if compiled_for(features_FH):
        return torch.ops.megatron_llava.visual_pack(*(t.contiguous() for t in tables), *plan)
    return visual_pack_torch(*tables, plan.taps, plan.weights, plan.feature_positions)

"""Tokens that are the largest of some features: rows of the table of their own.

A layout marks them by weights below 0 (token_layout.py), as a sum of rows they are nothing. Here
each becomes a row of the table behind the features, which the model fills before it packs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from megatron_llava.data.packed_batch import PackedBatch
from megatron_llava.data.row_plan import RowPlanner


def with_max_rows(batch: PackedBatch, num_features: int, planner: RowPlanner) -> PackedBatch:
    """The same pack, or share of one, with ``max_taps``.

    Args:
        batch: its marked rows name four features each.
        num_features: F, those of the pack or the share.
        planner: of the row plan.
    """
    assert batch.max_taps is None
    marked = np.flatnonzero(batch.weights[:, 0] < 0)
    taps, weights = batch.taps.copy(), batch.weights.copy()
    max_taps = taps[marked]
    assert (max_taps < num_features).all() and (weights[marked] < 0).all()
    taps[(weights != 0) & (taps >= num_features)] += len(marked)
    taps[marked], weights[marked] = 0, 0.0
    taps[marked, 0], weights[marked, 0] = num_features + np.arange(len(marked)), 1.0
    positions, bounds = batch.feature_positions, batch.view_bounds
    if len(positions):
        # As one more view, which has no place in a grid of tiles.
        positions = np.append(positions, np.full(len(marked), -1))
        bounds = np.append(bounds, len(positions))
    uses = planner.transpose(taps, weights, batch.num_table_rows + len(marked))
    return replace(
        batch,
        taps=taps,
        weights=weights,
        csr_offsets=uses.offsets,
        csr_rows=uses.rows,
        csr_weights=uses.weights,
        feature_positions=positions,
        view_bounds=bounds,
        max_taps=max_taps,
    )

"""Lengthen a collated pack, for ranks that must exchange tensors of one length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from megatron_llava.data.collate import PackedBatch


def pad_batch(batch: PackedBatch, rows: int) -> PackedBatch:
    """The same pack with padding up to ``rows`` positions.

    The padding stays one dummy sequence of its own: rows without taps, which no other row attends
    to and which carry no loss.

    Args:
        batch: R positions, of which ``num_rows`` are real.
        rows: the wanted R, at least what the pack has.
    """
    present = len(batch.position_ids)
    assert rows >= present, f"a pack of {present} positions cannot be padded to {rows}"
    if rows == present:
        return batch
    real = batch.num_rows
    padding = np.arange(rows - real, dtype=batch.position_ids.dtype)
    bounds = batch.cu_seqlens[: np.searchsorted(batch.cu_seqlens, real) + 1]
    cu_seqlens = np.append(bounds, np.int32(rows)).astype(np.int32)
    added = ((0, rows - present), (0, 0))
    return replace(
        batch,
        position_ids=np.concatenate((batch.position_ids[:real], padding)),
        cu_seqlens=cu_seqlens,
        max_seqlen=int(np.diff(cu_seqlens).max()),
        taps=np.pad(batch.taps, added),
        weights=np.pad(batch.weights, added),
    )

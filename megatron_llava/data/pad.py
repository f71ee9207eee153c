"""Lengthen a collated pack, for ranks that must exchange tensors of one length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from megatron_llava.data.packed_batch import PackedBatch


def pad_batch(batch: PackedBatch, rows: int) -> PackedBatch:
    """The same pack with padding up to ``rows`` positions.

    The padding stays one dummy sequence of its own: rows without taps, which no other row attends
    to and which carry no loss.

    Args:
        batch: a whole pack of R positions.
        rows: the wanted R, at least what the pack has.
    """
    present = len(batch.position_ids)
    assert rows >= present, f"a pack of {present} positions cannot be padded to {rows}"
    if rows == present:
        return batch
    bounds = batch.cu_seqlens[: batch.num_samples + 1]
    real = int(bounds[-1])
    padding = np.arange(rows - real, dtype=batch.position_ids.dtype)
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

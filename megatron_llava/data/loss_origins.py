"""Which token of which sample each loss of a pack belongs to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from megatron_llava.data.packed_batch import PackedBatch


def with_loss_origins(batch: PackedBatch, sample_ids: NDArray[np.int64]) -> PackedBatch:
    """The same pack with ``loss_origins``.

    Args:
        batch: a whole pack.
        sample_ids: [num_samples], what its samples are called, in their order.
    """
    assert len(sample_ids) == batch.num_samples, (len(sample_ids), batch.num_samples)
    counts, samples = batch.sample_loss_tokens, batch.loss_samples
    starts = np.cumsum(counts) - counts
    places = np.arange(len(samples)) - starts[samples]
    return replace(batch, loss_origins=np.stack((sample_ids[samples], places), axis=1))

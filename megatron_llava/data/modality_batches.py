"""Global batches of one modality: text alone, or with images and videos.

As LLaVA's ``group_by_modality_length``: samples of both are packed apart, and the packs of each are
dealt to whole global batches, whose order is shuffled. What fills no batch of its own stands at the
ends of the epoch, where batches are mixed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megatron_llava.data.splitmix import permutation


def order_of_batches(
    counts: Sequence[int], batch: int, first_pack: int, seed: int
) -> NDArray[np.int64]:
    """int64 [sum of counts]: the order of packs that are numbered modality after modality.

    Batches begin at multiples of `batch`, counted from the run's first pack: the epoch's first
    packs complete the batch that the epoch before began.

    Args:
        counts: packs of each modality.
        batch: packs of a global batch.
        first_pack: number of the epoch's first pack in the run.
        seed: decides the order of the batches.
    """
    head = -first_pack % batch
    whole, rest, begin = [], [], 0
    for count in counts:
        packs = np.arange(begin, begin + count)
        full = count // batch * batch
        whole.append(packs[:full].reshape(-1, batch))
        rest.append(packs[full:])
        begin += count
    batches, left = np.concatenate(whole), np.concatenate(rest)
    batches = batches[permutation(seed, len(batches))]
    if len(left) < head and len(batches):
        # One batch is taken apart to complete the one before.
        left, batches = np.concatenate([left, batches[-1]]), batches[:-1]
    return np.concatenate([left[:head], batches.reshape(-1), left[head:]])

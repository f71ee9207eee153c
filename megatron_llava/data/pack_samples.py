"""Which samples share a pack: the compiled packer, and the same in plain Python.

A pack takes samples in shuffled order, and is completed by the longest one that fits as soon as
little room is left. With many samples of many lengths there nearly always is one of the very length
that is missing, so packs are fuller than best fit by decreasing length makes them. Where there is
not, as with images of few sizes or with few views to a pack, the samples are packed again, evenly:
of those that come next, packs take the ones that fill them, and among such the ones of whose length
most is left, so that the last packs find what they need. What a pack holds stays a random draw but
for its last samples. Sorted by length, packs would hold samples of one length, and often of one
kind: losses of neighbouring steps were seen to differ by a factor of fifty.

Both packers make the same packs on every machine; what a seed means is part of the format.
"""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np

from megatron_llava.data.pack_in_python import Packs, pack_in_python
from megatron_llava.platform.extension import library


def pack_samples(
    lengths: np.ndarray,
    capacity: int,
    *,
    seed: int,
    window: int = 0,
    shuffle: bool = True,
    views: np.ndarray | None = None,
    max_views: int = 0,
) -> Packs:
    """Deal n samples to packs.

    Samples are shuffled. A pack takes them in that order while what is left of it stays at least as
    long as a quarter of the window's samples are; then it is completed by the longest sample that
    fits, the first of several, again and again. Then the packs are shuffled.

    If a window makes more packs than its rows or views need, by more than one of 1,024, it is
    packed again: in order while at least two mean lengths are left, and completed, again and again,
    by none, one or two of the next 12 samples and the longest one that then fits. Those that leave
    least are taken, a 4,096th of the pack being as good as nothing; of equal ones those that are
    least scarce, by the sum of (share of samples of about its length that are left, less the share
    of all that are) where lengths within a 256th of the pack are about equal. The fewer packs are
    kept.

    Args:
        lengths: int64 [n], rows of each sample, 1 to `capacity`.
        capacity: rows of a pack.
        seed: 0 to 2**64 - 1, decides the order.
        window: samples packed together; 0 for all.
        shuffle: off, samples are taken in their own order and packs stay as made.
        views: int64 [n], views of each sample, 0 to `max_views`; None for no bound.
        max_views: views of a pack.
    """
    assert lengths.dtype == np.int64 and len(lengths) > 0
    assert views is None or (views.dtype == np.int64 and len(views) == len(lengths))
    packer = _compiled()
    how = (capacity, max_views, seed, window, shuffle)
    return pack_in_python(lengths, views, *how) if packer is None else packer(lengths, views, *how)


@cache
def _compiled() -> CompiledPacker | None:
    loaded = library()
    return None if loaded is None else CompiledPacker(loaded)


class CompiledPacker:
    """csrc/pack_samples.cpp, called through ctypes, which releases the GIL."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        self._pack = loaded.megatron_llava_pack_samples
        size, array = ctypes.c_int64, ctypes.c_void_p
        self._pack.argtypes = [
            *(size, array, array, size, size),
            *(ctypes.c_uint64, size, ctypes.c_int32, array, array),
        ]
        self._pack.restype = size

    def __call__(
        self,
        lengths: np.ndarray,
        views: np.ndarray | None,
        capacity: int,
        max_views: int,
        seed: int,
        window: int,
        shuffle: bool,
    ) -> Packs:
        lengths = np.ascontiguousarray(lengths)
        views = None if views is None else np.ascontiguousarray(views)
        count = len(lengths)
        sample_ids = np.empty(count, dtype=np.int64)
        # Only as many are written, and so made real by the kernel, as there are packs.
        offsets = np.empty(count + 1, dtype=np.int64)
        made = self._pack(
            count,
            lengths.ctypes.data,
            None if views is None else views.ctypes.data,
            capacity,
            max_views,
            seed,
            window,
            int(shuffle),
            sample_ids.ctypes.data,
            offsets.ctypes.data,
        )
        return Packs(sample_ids, offsets[: made + 1].copy())

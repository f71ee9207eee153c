"""Which samples share a pack: the compiled packer, and the same in plain Python.

A pack takes samples in shuffled order, and is completed by the longest one that fits as soon as
little room is left. With many samples of many lengths there nearly always is one of the very length
that is missing, so packs are fuller than best fit by decreasing length makes them; where there is
none, as with images of few sizes, two samples are tried. What a pack holds stays a random draw but
for its last samples. Sorted by length, packs would hold samples of one length, and often of one
kind: losses of neighbouring steps were seen to differ by a factor of
fifty.

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
    fits, the first of several, again and again. Where even without regard to views that leaves more
    than a 4096th of the pack, each of the next 16 samples is tried with the longest one that then
    fits: the two that leave least are taken if they leave no more than that. If none do, and the
    sample taken last in the order was not the pack's first, it is put back once, and two that leave
    less than the longest sample did take its place. Then the packs are shuffled.

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

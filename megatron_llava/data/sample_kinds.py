"""What a sample has beside its text: the kinds that a training log counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from megatron_llava.data.row_plan import is_video
from megatron_llava.vision.anyres import Size

SAMPLE_KINDS = ("text", "single-image", "multi-image", "video")
"""A video beside images makes a sample one with a video."""

KIND_COLUMNS = {kind: f"{kind} samples" for kind in SAMPLE_KINDS}
"""Their columns in a log: samples since the line before, of all ranks."""

KindCounts = tuple[int, int, int, int]
"""Samples of each of SAMPLE_KINDS."""


def kind_of(sizes: Sequence[Size]) -> int:
    """Which of SAMPLE_KINDS a sample with images and videos of these stored sizes is."""
    if any(is_video(size) for size in sizes):
        return 3
    return min(len(sizes), 2)


def count_kinds(samples: Iterable[Sequence[Size]]) -> KindCounts:
    """How many samples, given by the sizes of their images, are of each kind."""
    found = Counter(map(kind_of, samples))
    return found[0], found[1], found[2], found[3]

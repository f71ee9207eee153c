"""What one microbatch holds on one rank, as far as it decides memory."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_llava.config.rules_model import known
from megatron_llava.config.run import RunConfig


@dataclass(frozen=True, kw_only=True)
class PackLoad:
    """Sizes of a pack or of a rank's share of it; context-parallel ranks have their own."""

    rows: int
    """Positions of the decoder, padding included."""

    loss_rows: int
    """Positions with a loss, at least 1."""

    text_tokens: int

    views: int
    """Views that this rank encodes, at least 1."""

    features: int
    """Feature rows that the projector takes: of all views, or what the rank receives of shared
    ones."""

    frames: int = 1
    """Of the videos, at least 1; encoded on a rank with all views only."""

    samples: int = 1

    maxima: int = 0
    """Rows that are the largest of some features."""


def share_of_pack(config: RunConfig, pack: PackLoad) -> PackLoad:
    """A rank's even share of a whole pack: positions over context-parallel ranks, views over those
    that share them.

    The most that a rank has is a little more where lengths do not divide.
    """
    parallel, vision = config.parallel, config.vision
    context = parallel.context_parallel_size
    tensor = parallel.tensor_model_parallel_size if parallel.vision_parallel == "data" else 1
    patches = (known(vision.vision_image_size) // known(vision.vision_patch_size)) ** 2
    return PackLoad(
        rows=_over(pack.rows, context),
        loss_rows=_over(pack.loss_rows, context),
        text_tokens=_over(pack.text_tokens, context),
        views=_over(pack.views, context * tensor),
        features=_over(pack.views * patches, context),
        frames=pack.frames,
        samples=pack.samples,
        maxima=-(-pack.maxima // context),
    )


def _over(number: int, ranks: int) -> int:
    return max(-(-number // ranks), 1)

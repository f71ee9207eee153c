"""A pack of samples to the arrays of one microbatch.

A sequence is the samples of a pack one behind the other, every image placeholder replaced by its
visual tokens, then padding. What stands at each position is written as a sparse row operator over
the virtual table [features F | specials S | text N]: F = max(V, 1) * T projected features in view
order (behind them what max_pooling.py adds), the special rows (image_newline first), and the
embeddings of the pack's text tokens.

Sizes in shapes: R positions with padding, N text tokens, V views, T tokens per view, S pixels per
side of a view, L positions with a loss, n sequences in cu_seqlens, i images.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megatron_llava.config.image import ImageSettings
from megatron_llava.config.video import video_settings
from megatron_llava.data.max_pooling import with_max_rows
from megatron_llava.data.pack_pixels import tiles_of
from megatron_llava.data.pack_positions import Losses, PackText, Positions
from megatron_llava.data.packed_batch import PackedBatch
from megatron_llava.data.row_plan import (
    VIDEO,
    NoLayoutError,
    RowPlanner,
    Visuals,
    visuals_of_samples,
)
from megatron_llava.data.row_plan_library import row_planner
from megatron_llava.data.sample import Sample
from megatron_llava.data.sample_kinds import count_kinds
from megatron_llava.data.share import dealt_views
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX
from megatron_llava.vision.tile_positions import NO_POSITION, view_positions


def collate(
    samples: Sequence[Sample],
    settings: ImageSettings,
    *,
    pad_multiple: int = 1,
    pad_to: int | None = None,
    sequence_multiple: int = 1,
    with_pixels: bool = True,
    view_share: tuple[int, int] = (0, 1),
    exact_pixels: bool = True,
    planner: RowPlanner | None = None,
) -> PackedBatch:
    """Lay out a pack, and cut its images into views.

    Args:
        samples: the pack; may be empty, which gives padding only.
        settings: image settings.
        pad_multiple, pad_to: see `padded_rows`; the padding is one more sequence of cu_seqlens.
        sequence_multiple: each sample is lengthened to a multiple of this by rows without taps.
        with_pixels: off, nothing is decoded and `tiles` is None.
        view_share: (rank, size): decode only the views dealt to this rank of a group.
        exact_pixels: off, large JPEGs are decoded at less than their size; see `enough_pixels`.
        planner: what builds the row operator; by default the compiled one where it is installed.

    Raises:
        ValueError: one line naming the sample, for an image that cannot be used.
    """
    text, planner = PackText(samples), planner or row_planner()
    visuals = visuals_of_samples([sample.image_sizes for sample in samples], settings)
    image_tokens, views = _count(samples, visuals, settings, planner)
    positions = Positions.of(
        text,
        image_tokens,
        pad_multiple=pad_multiple,
        pad_to=pad_to,
        sequence_multiple=sequence_multiple,
    )
    num_views, tiles = int(views.sum()), None
    if with_pixels:
        dealt = dealt_views(num_views, *view_share)
        tiles = tiles_of(samples, views, settings, dealt, exact_pixels)
    num_features = max(num_views, 1) * settings.tokens_per_view
    taps, weights, uses = planner.plan(
        visuals,
        settings,
        video=video_settings(settings),
        visual_rows=positions.row_starts[text.is_image],
        text_rows=positions.row_starts[~text.is_image],
        num_features=num_features,
        total_rows=positions.total_rows,
    )
    feature_positions, view_bounds = _tile_positions(visuals, settings)
    batch = PackedBatch(
        token_ids=text.tokens[~text.is_image],
        position_ids=np.arange(positions.total_rows) - positions.sequence_starts,
        cu_seqlens=positions.cu_seqlens,
        max_seqlen=int(np.diff(positions.cu_seqlens).max()),
        **Losses.of(text, positions)._asdict(),
        taps=taps,
        weights=weights,
        csr_offsets=uses.offsets,
        csr_rows=uses.rows,
        csr_weights=uses.weights,
        feature_positions=feature_positions,
        view_bounds=view_bounds,
        tiles=tiles,
        num_samples=len(samples),
        sample_kinds=count_kinds(sample.image_sizes for sample in samples),
        num_images=len(visuals),
        num_views=num_views,
        sample_views=_views_of_samples(samples, views),
        videos=_videos(visuals, views),
        num_rows=positions.num_rows,
        attended=positions.attended,
    )
    # Of ranks that share views, each has other rows: share.py does it then.
    if settings.pools_by_max and view_share[1] == 1:
        return with_max_rows(batch, num_features, planner)
    return batch


def _count(
    samples: Sequence[Sample], visuals: Visuals, settings: ImageSettings, planner: RowPlanner
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens [i] and views [i] of the images of all samples."""
    for sample in samples:
        placeholders = int(np.count_nonzero(sample.token_ids == IMAGE_TOKEN_INDEX))
        assert placeholders == len(sample.image_sizes), sample.source
    try:
        return planner.count(visuals, settings, video_settings(settings))
    except NoLayoutError as error:
        ends = np.cumsum([len(sample.image_sizes) for sample in samples])
        source = samples[int(np.searchsorted(ends, error.visual, side="right"))].source
        raise ValueError(f"{source}: {error}") from error


def _views_of_samples(samples: Sequence[Sample], views: NDArray[np.int64]) -> tuple[int, ...]:
    """[num_samples], the views of all images of each sample."""
    ends = np.cumsum([len(sample.image_sizes) for sample in samples], dtype=np.int64)
    totals = np.concatenate(([0], np.cumsum(views)))
    return tuple(np.diff(totals[ends], prepend=0).tolist())


def _videos(visuals: Visuals, views: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    """[num_videos], the first view and the frames of each video."""
    found = np.flatnonzero(visuals[:, 2] == VIDEO)
    first = (np.cumsum(views) - views)[found]
    return tuple(zip(first.tolist(), views[found].tolist(), strict=True))


def _tile_positions(
    visuals: Visuals, settings: ImageSettings
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions [F] of the features, and the bounds [V + 1] of the views among them."""
    if not settings.tile_position_embedding:
        nothing: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        return nothing, nothing
    of_views: list[int] = []
    for width, height, kind, single_view, _ in visuals.tolist():
        if kind == VIDEO:
            of_views += [NO_POSITION] * width
        else:
            of_views += view_positions((width, height), settings, single_view=bool(single_view))
    # A pack without an image has one view all the same, which no row uses.
    of_views = of_views or [NO_POSITION]
    tokens = settings.tokens_per_view
    positions = np.repeat(np.array(of_views, dtype=np.int64), tokens)
    return positions, np.arange(len(of_views) + 1, dtype=np.int64) * tokens

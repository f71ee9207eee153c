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
from megatron_llava.data.packed_batch import PackedBatch
from megatron_llava.data.row_plan import (
    VIDEO,
    NoLayoutError,
    RowPlanner,
    Visuals,
    is_video,
    visuals_of_samples,
)
from megatron_llava.data.row_plan_library import row_planner
from megatron_llava.data.sample import Sample
from megatron_llava.data.sample_kinds import count_kinds
from megatron_llava.data.share import dealt_views
from megatron_llava.data.stored_video import unpack_frames
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX
from megatron_llava.vision.frames import frame_views
from megatron_llava.vision.tile_positions import NO_POSITION, view_positions
from megatron_llava.vision.tiles import enough_pixels, image_views, open_image


def padded_rows(num_rows: int, pad_multiple: int = 1, pad_to: int | None = None) -> int:
    """R for a pack of `num_rows` positions: the next multiple of pad_multiple (not 0), or pad_to.

    Raises:
        ValueError: pad_to is less than the pack needs, or not a multiple of pad_multiple.
    """
    rows = max(-(-num_rows // pad_multiple), 1) * pad_multiple
    if pad_to is None:
        return rows
    if pad_to < rows or pad_to % pad_multiple:
        raise ValueError(
            f"cannot pad {num_rows} positions to {pad_to}: "
            f"it must be at least {rows} and a multiple of {pad_multiple}"
        )
    return pad_to


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
    text = _Text(samples)
    planner = planner or row_planner()
    visuals = visuals_of_samples([sample.image_sizes for sample in samples], settings)
    image_tokens, views = _count(samples, visuals, settings, planner)
    rows_of_token = np.ones(len(text.tokens), dtype=np.int64)
    rows_of_token[text.is_image] = image_tokens
    num_rows = int(rows_of_token.sum())
    sample_rows = text.sample_sums(rows_of_token)
    row_starts, sample_ends = _places(text, rows_of_token, sample_rows, sequence_multiple)
    end = int(sample_ends[-1]) if samples else 0
    total_rows = padded_rows(end, pad_multiple, pad_to)

    bounds = [0, *sample_ends.tolist()] + [total_rows] * (total_rows > end)
    cu_seqlens = np.array(bounds, dtype=np.int32)
    lengths = np.diff(cu_seqlens)
    sequence_starts = np.repeat(cu_seqlens[:-1], lengths)

    loss_rows = row_starts - 1
    # The first position of a sample has none before it; a supervised token there is no label.
    has_loss = text.supervised & (row_starts > sequence_starts[row_starts])
    num_views = int(views.sum())
    num_features = max(num_views, 1) * settings.tokens_per_view
    taps, weights, uses = planner.plan(
        visuals,
        settings,
        video=video_settings(settings),
        visual_rows=row_starts[text.is_image],
        text_rows=row_starts[~text.is_image],
        num_features=num_features,
        total_rows=total_rows,
    )
    token_ids = text.tokens[~text.is_image]
    feature_positions, view_bounds = _positions(visuals, settings)
    batch = PackedBatch(
        token_ids=token_ids,
        position_ids=np.arange(total_rows) - sequence_starts,
        cu_seqlens=cu_seqlens,
        max_seqlen=int(lengths.max()),
        loss_rows=loss_rows[has_loss],
        loss_labels=text.tokens[has_loss],
        loss_samples=text.samples[has_loss],
        sample_loss_tokens=np.bincount(text.samples[has_loss], minlength=len(samples)),
        taps=taps,
        weights=weights,
        csr_offsets=uses.offsets,
        csr_rows=uses.rows,
        csr_weights=uses.weights,
        feature_positions=feature_positions,
        view_bounds=view_bounds,
        tiles=_tiles(samples, views, settings, dealt_views(num_views, *view_share), exact_pixels)
        if with_pixels
        else None,
        num_samples=len(samples),
        sample_kinds=count_kinds(sample.image_sizes for sample in samples),
        num_images=len(visuals),
        num_views=num_views,
        sample_views=_views_of_samples(samples, views),
        videos=_videos(visuals, views),
        num_rows=num_rows,
        attended=int((sample_rows**2).sum()),
        num_loss_rows=int(np.count_nonzero(has_loss)),
    )
    # Of ranks that share views, each has other rows: share.py does it then.
    if settings.pools_by_max and view_share[1] == 1:
        return with_max_rows(batch, num_features, planner)
    return batch


class _Text:
    """The token ids of all samples behind each other, images not yet expanded."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        nothing: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.tokens = np.concatenate([nothing, *(s.token_ids for s in samples)])
        mask = np.concatenate([nothing, *(s.label_mask for s in samples)])
        self.is_image = self.tokens == IMAGE_TOKEN_INDEX
        self.supervised = mask == 1
        lengths = np.array([len(s.token_ids) for s in samples], dtype=np.int64)
        self.token_ends = np.cumsum(lengths)
        self.samples = np.repeat(np.arange(len(samples)), lengths)
        assert len(mask) == len(self.tokens) and not (self.supervised & self.is_image).any()
        assert lengths.min(initial=1) > 0

    def sample_sums(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sum over the tokens of each sample, of one value a token."""
        return np.diff(np.cumsum(values)[self.token_ends - 1], prepend=0)


def _places(
    text: _Text,
    rows_of_token: NDArray[np.int64],
    sample_rows: NDArray[np.int64],
    sequence_multiple: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first position of each token, and the end of each sample with its own padding."""
    ends = np.cumsum(rows_of_token)
    padding = -sample_rows % sequence_multiple
    before = np.cumsum(padding) - padding
    sample_ends = np.cumsum(sample_rows + padding)
    return ends - rows_of_token + before[text.samples], sample_ends


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


def _positions(
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


def _tiles(
    samples: Sequence[Sample],
    views: NDArray[np.int64],
    settings: ImageSettings,
    share: range,
    exact_pixels: bool,
) -> NDArray[np.uint8]:
    """[max(len(share), 1), 3, S, S]: the tower always has something to do, on every rank."""
    side = settings.tile_size
    tiles = np.zeros((max(len(share), 1), 3, side, side), dtype=np.uint8)
    first, num_views = 0, iter(views.tolist())
    for sample in samples:
        assert sample.images is not None and len(sample.images) == len(sample.image_sizes)
        for number in range(len(sample.images)):
            end = first + next(num_views)
            wanted = range(max(first, share.start), min(end, share.stop))
            if wanted:
                decoded = views_of(sample, number, settings, exact_pixels=exact_pixels)
                assert len(decoded) == end - first
                place = wanted.start - share.start
                tiles[place : place + len(wanted)] = decoded[wanted.start - first :][: len(wanted)]
            first = end
    return tiles


def views_of(
    sample: Sample, number: int, settings: ImageSettings, *, exact_pixels: bool = True
) -> NDArray[np.uint8]:
    """uint8 [V, 3, S, S]: what the tower sees of one image or video of a sample.

    Raises:
        ValueError: it cannot be decoded, or has another size than was stored; names the sample.
    """
    assert sample.images is not None
    data = sample.images[number]
    if is_video(sample.image_sizes[number]):
        source = f"{sample.source}: video {number}"
        frames = unpack_frames(data, source)
        try:
            return frame_views(frames, settings)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
    source = f"{sample.source}: image {number}"
    size = sample.image_sizes[number]
    single_view = settings.single_view(sum(not is_video(size) for size in sample.image_sizes))
    enough = None if exact_pixels else enough_pixels(size, settings, single_view=single_view)
    image = open_image(data, source, at_least=enough)
    if image.size not in _sizes_of_decoding(size, exact_pixels):
        raise ValueError(f"{source} decodes to {image.size} pixels, stored as {size}")
    try:
        return image_views(image, settings, single_view=single_view, full_size=size)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _sizes_of_decoding(size: tuple[int, int], exact_pixels: bool) -> set[tuple[int, int]]:
    """What an image of this size may decode to."""
    parts = (1,) if exact_pixels else (1, 2, 4, 8)
    return {(-(-size[0] // part), -(-size[1] // part)) for part in parts}

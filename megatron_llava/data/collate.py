"""A pack of samples to the arrays of one microbatch.

A sequence is the samples of a pack one behind the other, every image placeholder replaced by its
visual tokens, then padding. What stands at each position is written as a sparse row operator over
the virtual table [features F | specials 1 | text N]: F = max(V, 1) * T projected features in view
order, the image_newline row, and the embeddings of the pack's text tokens.

Sizes in shapes: R positions with padding, N text tokens, V views, T tokens per view, S pixels per
side of a view, L positions with a loss, n sequences in cu_seqlens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_llava.config.image import ImageSettings
from megatron_llava.data.store import Sample
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX
from megatron_llava.vision.tiles import image_views, open_image
from megatron_llava.vision.token_layout import MAX_TAPS, NEWLINE, ImageLayout, image_layout


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One microbatch on the host."""

    token_ids: NDArray[np.int64]
    """[N], text tokens in pack order; images and padding have none."""

    position_ids: NDArray[np.int64]
    """[R], from 0 in each sample and in the padding."""

    cu_seqlens: NDArray[np.int32]
    """[n + 1], start of each sample, then of the padding if there is any, then R."""

    max_seqlen: int
    """Longest difference of cu_seqlens."""

    loss_rows: NDArray[np.int64]
    """[L], positions whose next position in the same sample is a supervised text token."""

    loss_labels: NDArray[np.int64]
    """[L], those tokens."""

    taps: NDArray[np.int64]
    """[R, 4], rows of the virtual table; unused taps are 0."""

    weights: NDArray[np.float32]
    """[R, 4], 0 for unused taps and in the padding."""

    tiles: NDArray[np.uint8] | None
    """[max(V, 1), 3, S, S], a zero view where the pack has no image; None without pixels."""

    num_samples: int
    num_images: int
    num_views: int
    """V: 0 where the pack has no image."""

    num_rows: int
    """Positions before padding."""

    def to_torch(self, device: torch.device | str = "cpu") -> "TensorBatch":
        """The same batch as tensors on a device, without a copy where that is possible."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                values[name] = torch.from_numpy(value).to(device, non_blocking=True)
        return TensorBatch(**values)


@dataclass(frozen=True, kw_only=True)
class TensorBatch:
    """A PackedBatch on a device; fields and shapes are its."""

    token_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    loss_rows: torch.Tensor
    loss_labels: torch.Tensor
    taps: torch.Tensor
    weights: torch.Tensor
    tiles: torch.Tensor | None
    num_samples: int
    num_images: int
    num_views: int
    num_rows: int


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
    with_pixels: bool = True,
) -> PackedBatch:
    """Lay out a pack, and cut its images into views.

    Args:
        samples: the pack; may be empty, which gives padding only.
        settings: image settings; a sample of several images takes one padded view of each.
        pad_multiple, pad_to: see `padded_rows`; the padding is one more sequence of cu_seqlens.
        with_pixels: off, nothing is decoded and `tiles` is None.

    Raises:
        ValueError: one line naming the sample, for an image that cannot be used.
    """
    text = _Text(samples)
    layouts = [layout for sample in samples for layout in _layouts(sample, settings)]
    rows_of_token = np.ones(len(text.tokens), dtype=np.int64)
    rows_of_token[text.is_image] = [len(layout.taps) for layout in layouts]
    row_ends = np.cumsum(rows_of_token)
    row_starts = row_ends - rows_of_token
    sample_ends = row_ends[text.token_ends - 1]
    num_rows = int(sample_ends[-1]) if samples else 0
    total_rows = padded_rows(num_rows, pad_multiple, pad_to)

    bounds = [0, *sample_ends.tolist()] + [total_rows] * (total_rows > num_rows)
    cu_seqlens = np.array(bounds, dtype=np.int32)
    lengths = np.diff(cu_seqlens)
    sequence_starts = np.repeat(cu_seqlens[:-1], lengths)

    loss_rows = row_starts - 1
    # The first position of a sample has none before it; a supervised token there is no label.
    has_loss = text.supervised & (row_starts > sequence_starts[row_starts])
    num_views = sum(layout.num_views for layout in layouts)
    taps, weights = _row_operator(
        layouts,
        image_rows=row_starts[text.is_image],
        text_rows=row_starts[~text.is_image],
        num_features=max(num_views, 1) * settings.tokens_per_view,
        tokens_per_view=settings.tokens_per_view,
        total_rows=total_rows,
    )
    return PackedBatch(
        token_ids=text.tokens[~text.is_image],
        position_ids=np.arange(total_rows) - sequence_starts,
        cu_seqlens=cu_seqlens,
        max_seqlen=int(lengths.max()),
        loss_rows=loss_rows[has_loss],
        loss_labels=text.tokens[has_loss],
        taps=taps,
        weights=weights,
        tiles=_tiles(samples, settings, num_views) if with_pixels else None,
        num_samples=len(samples),
        num_images=len(layouts),
        num_views=num_views,
        num_rows=num_rows,
    )


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
        assert len(mask) == len(self.tokens) and not (self.supervised & self.is_image).any()
        assert lengths.min(initial=1) > 0


def _layouts(sample: Sample, settings: ImageSettings) -> list[ImageLayout]:
    placeholders = int(np.count_nonzero(sample.token_ids == IMAGE_TOKEN_INDEX))
    assert placeholders == len(sample.image_sizes), sample.source
    single_view = len(sample.image_sizes) > 1
    try:
        return [image_layout(s, settings, single_view=single_view) for s in sample.image_sizes]
    except ValueError as error:
        raise ValueError(f"{sample.source}: {error}") from error


def _row_operator(
    layouts: list[ImageLayout],
    *,
    image_rows: NDArray[np.int64],
    text_rows: NDArray[np.int64],
    num_features: int,
    tokens_per_view: int,
    total_rows: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Taps and weights, both [R, 4]; image_rows and text_rows are the first row of each."""
    taps = np.zeros((total_rows, MAX_TAPS), dtype=np.int64)
    weights = np.zeros((total_rows, MAX_TAPS), dtype=np.float32)
    taps[text_rows, 0] = num_features + 1 + np.arange(len(text_rows))
    weights[text_rows, 0] = 1.0
    first_feature = 0
    for row, layout in zip(image_rows.tolist(), layouts, strict=True):
        rows = slice(row, row + len(layout.taps))
        features = np.where(layout.weights == 0.0, 0, layout.taps + first_feature)
        taps[rows] = np.where(layout.taps == NEWLINE, num_features, features)
        weights[rows] = layout.weights
        first_feature += layout.num_views * tokens_per_view
    return taps, weights


def _tiles(samples: Sequence[Sample], settings: ImageSettings, num_views: int) -> NDArray[np.uint8]:
    """[max(V, 1), 3, S, S]; the vision tower always has something to do, on every rank."""
    side = settings.tile_size
    tiles = np.zeros((max(num_views, 1), 3, side, side), dtype=np.uint8)
    first = 0
    for sample in samples:
        assert sample.images is not None and len(sample.images) == len(sample.image_sizes)
        for number, data in enumerate(sample.images):
            views = _views(data, sample, number, settings)
            tiles[first : first + len(views)] = views
            first += len(views)
    assert first == num_views
    return tiles


def _views(data: bytes, sample: Sample, number: int, settings: ImageSettings) -> NDArray[np.uint8]:
    source = f"{sample.source}: image {number}"
    image = open_image(data, source)
    if image.size != sample.image_sizes[number]:
        raise ValueError(
            f"{source} decodes to {image.size} pixels, stored as {sample.image_sizes[number]}"
        )
    try:
        return image_views(image, settings, single_view=len(sample.image_sizes) > 1)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error

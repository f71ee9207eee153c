"""The visual tokens of an image: how many, from which view and patch each one comes.

Preprocessing, packing, collation, the model and the converters all ask this module, so a plan and a
model cannot disagree. The rules are those of LLaVA-NeXT's prepare_inputs_labels_for_multimodal:
features of every view are projected first, then merged (merge_shape.py says how).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from megatron_llava.config.image import ImageSettings
from megatron_llava.config.video import VideoSettings
from megatron_llava.vision.anyres import Size
from megatron_llava.vision.merge_shape import (
    NEWLINE,
    Canvas,
    Merge,
    check_size,
    grid_of_image,
    merge_image,
    merge_video,
)

MAX_TAPS = 4
"""Taps of one token: one for a copied row, four for a bilinear one."""


@dataclass(frozen=True, eq=False)
class ImageLayout:
    """Tokens of one image or video as a sparse row operator.

    Token r is the sum over k of weights[r, k] * source row taps[r, k].

    Both arrays are read-only, because layouts are cached and shared.
    """

    num_views: int
    """V, views to encode; the frames of a video."""

    taps: NDArray[np.int64]
    """[R, 4]; a row of the image's own projected features, view-major [V * T], or -1 - s for
    special row s (NEWLINE, SEPARATOR, IMAGE_START, IMAGE_END).

    Rows of one tap use column 0 with weight 1; an unused tap is index 0 with weight 0."""

    weights: NDArray[np.float32]
    """[R, 4]; they sum to 1 over a row, to -1 where the token is the largest of its taps."""

    @property
    def num_maxima(self) -> int:
        """Tokens that are the largest of their taps."""
        return int(np.count_nonzero(self.weights[:, 0] < 0))


def number_of_views(image_size: Size, settings: ImageSettings, *, single_view: bool = False) -> int:
    """V, the views of an image that the vision tower encodes.

    Args:
        image_size: (W, H) in pixels.
        settings: image settings.
        single_view: the image shares its sample with others: one padded view in every mode.

    Raises:
        ValueError: a side of the image is below 1.
    """
    if single_view or not settings.uses_grid:
        check_size(image_size)
        return 1
    columns, rows = grid_of_image(image_size, settings)
    return columns * rows + settings.has_base_view


def number_of_tokens(
    image_size: Size,
    settings: ImageSettings,
    *,
    single_view: bool = False,
    after_image: bool = False,
) -> int:
    """R, the tokens of an image in the sequence: len(image_layout(...).taps) without its arrays.

    Args and errors: as for image_layout.
    """
    merge = merge_image(image_size, settings, single_view=single_view, after_image=after_image)
    return merge.num_tokens


def number_of_video_tokens(num_frames: int, settings: VideoSettings) -> int:
    """R, the tokens of a video in the sequence: len(video_layout(...).taps).

    Raises:
        ValueError: no frame.
    """
    return merge_video(num_frames, settings).num_tokens


@lru_cache(maxsize=128)
def image_layout(
    image_size: Size,
    settings: ImageSettings,
    *,
    single_view: bool = False,
    after_image: bool = False,
) -> ImageLayout:
    """The source of every visual token of an image, in sequence order.

    Args:
        image_size: (W, H) in pixels.
        settings: image settings.
        single_view: the image shares its sample with others: one padded view in every mode.
        after_image: the image is not the first of its sample, so that a separator may precede it.

    Raises:
        ValueError: a side of the image is below 1, or the image is so thin that no token is left.
    """
    merge = merge_image(image_size, settings, single_view=single_view, after_image=after_image)
    return _layout(merge, settings.patches_per_side)


@lru_cache(maxsize=16)
def video_layout(num_frames: int, settings: VideoSettings) -> ImageLayout:
    """The source of every visual token of a video, in sequence order.

    Raises:
        ValueError: no frame.
    """
    return _layout(merge_video(num_frames, settings), settings.patches_per_side)


def _layout(merge: Merge, patches_per_side: int) -> ImageLayout:
    parts = [_special_rows(merge.before)]
    for canvas in merge.canvases:
        parts.append(_canvas_rows(canvas, patches_per_side))
    parts.append(_special_rows(merge.after))
    taps = np.concatenate([part_taps for part_taps, _ in parts])
    weights = np.concatenate([part_weights for _, part_weights in parts])
    taps.flags.writeable = weights.flags.writeable = False
    return ImageLayout(num_views=merge.num_views, taps=taps, weights=weights)


def _special_rows(rows: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    taps = np.zeros((len(rows), MAX_TAPS), dtype=np.int64)
    weights = np.zeros((len(rows), MAX_TAPS), dtype=np.float32)
    taps[:, 0], weights[:, 0] = rows, 1.0
    return taps, weights


def _canvas_rows(canvas: Canvas, patches: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Taps and weights [tokens, 4] of a canvas, row by row; views have patches^2 features."""
    crop, side, pooling = canvas.crop, canvas.side, canvas.pooling
    y = _resized(crop.height, canvas.height, pooling)
    x = _resized(crop.width, canvas.width, pooling)
    view_row, patch_row, y_weight = _in_views(*y, crop.top, side, patches, pooling)
    view_column, patch_column, x_weight = _in_views(*x, crop.left, side, patches, pooling)
    if pooling == "max" and (side != patches or crop.height != canvas.height):
        y_weight = -y_weight
    row_start = (canvas.first_view + view_row * canvas.columns) * patches**2 + patch_row * patches
    column_start = view_column * patches**2 + patch_column
    # [h, 2] with [w, 2] to [h, w, 2 * 2]; the second of each pair is the patch below or right.
    shape = (canvas.height, canvas.width, MAX_TAPS)
    sources = (row_start[:, None, :, None] + column_start[None, :, None, :]).reshape(shape)
    weights = (y_weight[:, None, :, None] * x_weight[None, :, None, :]).reshape(shape)
    taps = np.where(weights == 0.0, 0, sources)
    if canvas.newline_every:
        # The rows between two newlines become one.
        lines = canvas.height // canvas.newline_every
        shape = (lines, canvas.newline_every * canvas.width, MAX_TAPS)
        taps = np.pad(taps.reshape(shape), ((0, 0), (0, 1), (0, 0)))
        weights = np.pad(weights.reshape(shape), ((0, 0), (0, 1), (0, 0)))
        taps[:, -1, 0], weights[:, -1, 0] = NEWLINE, 1.0
    return taps.reshape(-1, MAX_TAPS), weights.reshape(-1, MAX_TAPS)


def _in_views(
    position: NDArray[np.int64],
    weight: NDArray[np.float32],
    start: int,
    side: int,
    patches: int,
    pooling: str,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """View and patch within it, along one side of a canvas, and weights, all [n, 2].

    Args:
        position: [n, 2] positions within the crop, with their weights.
        start: where the crop begins.
        side: positions of a view on the canvas; other than `patches`, views are resized to it.
    """
    view, inside = np.divmod(position + start, side)
    if side == patches:
        return view, inside, weight
    # Views are resized one by one, or their canvas is, but never both: each position is one.
    patch, patch_weight = _resized(patches, side, pooling)
    return view[:, :1], patch[inside[:, 0]], patch_weight[inside[:, 0]]


def _resized(
    size: int, new_size: int, pooling: str
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Source positions and weights, both [new_size, 2]; an unchanged size copies."""
    pairs = pooling != "bilinear" and size != new_size
    return (_pairs if pairs else _bilinear)(size, new_size)


def _pairs(size: int, new_size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Source positions and weights, both [new_size, 2], of 2 each; the rest is cut."""
    assert new_size == size // 2
    return np.arange(2 * new_size).reshape(-1, 2), np.full((new_size, 2), 0.5, dtype=np.float32)


def _bilinear(size: int, new_size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Source positions and weights, both [new_size, 2], of a bilinear resize along one side.

    As torch.nn.functional.interpolate(mode="bilinear", align_corners=False) without antialiasing:
    x = (i + 0.5) * size / new_size - 0.5, not below 0. An unchanged size copies.
    """
    # Torch holds the scale in float32 and rounds x once (a fused multiply-add); float64 holds the
    # product and the difference exactly, so that casting back gives the same float32.
    scale = np.float64(np.float32(size) / np.float32(max(new_size, 1)))
    exact = (np.arange(new_size) + 0.5) * scale - 0.5
    position = np.maximum(exact, 0.0).astype(np.float32)
    low = position.astype(np.int64)
    high = np.minimum(low + 1, size - 1)
    high_weight = position - low.astype(np.float32)
    weights = np.stack([np.float32(1.0) - high_weight, high_weight], axis=1)
    return np.stack([low, high], axis=1), weights

"""The visual tokens of an image: how many, from which view and patch each one comes.

Preprocessing, packing, collation, the model and the converters all ask this module, so a plan and a
model cannot disagree. The rules are those of LLaVA-NeXT's prepare_inputs_labels_for_multimodal:
features of every view are projected first, then put on one canvas, cropped to the image, possibly
shrunk, and read row by row with a newline vector after each row.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_llava.config.image import ImageSettings
from megatron_llava.vision.anyres import Size, select_best_resolution

NEWLINE = -1
"""Tap that stands for the learned image_newline row."""

MAX_TAPS = 4
"""Taps of one token: one for a copied row, four for a bilinear one."""

_SHRINK_ABOVE = 1.1


@dataclass(frozen=True, eq=False)
class ImageLayout:
    """Tokens of one image as a sparse row operator.

    Token r is the sum over k of weights[r, k] * source row taps[r, k].

    Both arrays are read-only, because layouts are cached and shared.
    """

    num_views: int
    """V, views to encode."""

    taps: NDArray[np.int64]
    """[R, 4]; a row of the image's own projected features, view-major [V * T], or NEWLINE.

    Rows of one tap use column 0 with weight 1; an unused tap is index 0 with weight 0."""

    weights: NDArray[np.float32]
    """[R, 4]; they sum to 1 over a row."""


class Crop(NamedTuple):
    """A rectangle of a canvas, counted in patches."""

    top: int
    left: int
    height: int
    width: int


class _Merge(NamedTuple):
    """What image_layout and number_of_tokens share: the shape of the merged sequence."""

    num_views: int
    whole_views: range  # views copied to the start of the sequence, every patch in order
    first_tile: int = 0  # view at the top left of the canvas
    columns: int = 0  # tiles per canvas row
    crop: Crop = Crop(0, 0, 0, 0)  # part of the canvas that is kept
    height: int = 0  # rows and columns of the kept part in the sequence, after shrinking
    width: int = 0
    row_newline: bool = False
    final_newline: bool = False


def unpad_crop(image_size: Size, canvas_size: Size, unpad_round: str) -> Crop:
    """The part of a canvas that the image covers, after it was letterboxed onto it.

    Formula of LLaVA-NeXT's unpad_image: the short side is int(side * scale), and the same number of
    rows is cut from both ends, so that an odd remainder stays. 'hf' rounds side * scale to 7 digits
    before truncation, as transformers does; the two differ by two rows for about 1 size in 30,000.

    Args:
        image_size: (W, H) in pixels.
        canvas_size: (width, height) in patches.
        unpad_round: 'llava' or 'hf'.
    """
    image_width, image_height = image_size
    width, height = canvas_size
    if image_width / image_height > width / height:
        top = (height - _truncate(image_height * (width / image_width), unpad_round)) // 2
        return Crop(top, 0, height - 2 * top, width)
    left = (width - _truncate(image_width * (height / image_height), unpad_round)) // 2
    return Crop(0, left, height, width - 2 * left)


def _truncate(value: float, unpad_round: str) -> int:
    return int(round(value, 7) if unpad_round == "hf" else value)


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
        _check_size(image_size)
        return 1
    columns, rows = _grid(image_size, settings)
    return columns * rows + settings.has_base_view


def number_of_tokens(
    image_size: Size, settings: ImageSettings, *, single_view: bool = False
) -> int:
    """R, the tokens of an image in the sequence: len(image_layout(...).taps) without its arrays.

    Args and errors: as for image_layout.
    """
    merge = _merge(image_size, settings, single_view)
    return (
        len(merge.whole_views) * settings.tokens_per_view
        + merge.height * (merge.width + merge.row_newline)
        + merge.final_newline
    )


@lru_cache(maxsize=128)
def image_layout(
    image_size: Size, settings: ImageSettings, *, single_view: bool = False
) -> ImageLayout:
    """The source of every visual token of an image, in sequence order.

    Args:
        image_size: (W, H) in pixels.
        settings: image settings.
        single_view: the image shares its sample with others: one padded view in every mode.

    Raises:
        ValueError: a side of the image is below 1, or the image is so thin that no token is left.
    """
    merge = _merge(image_size, settings, single_view)
    tokens = settings.tokens_per_view
    base = np.arange(merge.whole_views.start * tokens, merge.whole_views.stop * tokens)
    canvas_taps, canvas_weights = _canvas_taps(merge, settings.patches_per_side)
    rows = len(base) + len(canvas_taps) + merge.final_newline
    taps = np.zeros((rows, MAX_TAPS), dtype=np.int64)
    weights = np.zeros((rows, MAX_TAPS), dtype=np.float32)
    weights[:, 0] = 1.0
    taps[: len(base), 0] = base
    canvas = slice(len(base), len(base) + len(canvas_taps))
    taps[canvas], weights[canvas] = canvas_taps, canvas_weights
    if merge.final_newline:
        taps[-1, 0] = NEWLINE
    taps.flags.writeable = weights.flags.writeable = False
    return ImageLayout(num_views=merge.num_views, taps=taps, weights=weights)


def _check_size(image_size: Size) -> None:
    if image_size[0] < 1 or image_size[1] < 1:
        raise ValueError(f"image of {image_size[0]}x{image_size[1]} pixels: a side is below 1")


def _grid(image_size: Size, settings: ImageSettings) -> Size:
    """(columns, rows) of tiles of the canvas chosen for an image."""
    _check_size(image_size)
    # Sizes read from an array are 32 bit there, and an area may not fit.
    size = int(image_size[0]), int(image_size[1])
    width, height = select_best_resolution(size, settings.grid_pinpoints)
    return width // settings.tile_size, height // settings.tile_size


def _merge(image_size: Size, settings: ImageSettings, single_view: bool) -> _Merge:
    """The shape of an image's sequence; every number in it is closed form."""
    merge_type = settings.mm_patch_merge_type
    unpad = "unpad" in merge_type
    if single_view or not settings.uses_grid:
        _check_size(image_size)
        # The only view stays, whatever the merge type says about base views.
        return _Merge(1, range(1), final_newline=unpad)

    columns, rows = _grid(image_size, settings)
    first_tile = int(settings.has_base_view)
    views = first_tile + columns * rows
    first_merged = first_tile if "nobase" in merge_type else 0
    if merge_type.startswith("flat"):
        return _Merge(views, range(first_merged, views))

    base = range(first_merged, first_tile)
    side = settings.patches_per_side
    crop = Crop(0, 0, rows * side, columns * side)
    height, width = crop.height, crop.width
    if unpad:
        size = int(image_size[0]), int(image_size[1])
        crop = unpad_crop(size, (columns * side, rows * side), settings.unpad_round)
        height, width = _shrink(crop, settings)
    if height * width == 0 and (not base or crop.height * crop.width > 0):
        raise ValueError(
            f"image of {image_size[0]}x{image_size[1]} pixels is too thin: --image-aspect-ratio "
            f"{settings.image_aspect_ratio} with --mm-patch-merge-type {merge_type} leaves "
            f"{height}x{width} patches of its {columns}x{rows} tiles; remove the image or crop it"
        )
    return _Merge(views, base, first_tile, columns, crop, height, width, row_newline=unpad)


def _shrink(crop: Crop, settings: ImageSettings) -> Size:
    """(height, width) of the merged canvas; anyres_max_N divides both sides by t, rounding down.

    t = sqrt(h * w / (N * T)), and only t > 1.1 is acted upon, so that up to 1.21 * N * T stay.
    """
    if settings.max_merged_views is None:
        return crop.height, crop.width
    budget = settings.max_merged_views * settings.tokens_per_view
    ratio = math.sqrt(crop.height * crop.width / budget)
    if ratio <= _SHRINK_ABOVE:
        return crop.height, crop.width
    return int(crop.height // ratio), int(crop.width // ratio)


def _canvas_taps(merge: _Merge, side: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Taps and weights [h * (w + newline), 4] of the canvas in row-major order."""
    crop, shape = merge.crop, (merge.height, merge.width, MAX_TAPS)
    y, y_weight = _bilinear(crop.height, merge.height)
    x, x_weight = _bilinear(crop.width, merge.width)
    # Patch (y, x) of the canvas is patch (y % u, x % u) of tile (y // u, x // u).
    tile_row, in_tile_row = np.divmod(y + crop.top, side)
    tile_column, in_tile_column = np.divmod(x + crop.left, side)
    row_start = (merge.first_tile + tile_row * merge.columns) * side**2 + in_tile_row * side
    column_start = tile_column * side**2 + in_tile_column
    # [h, 2] with [w, 2] to [h, w, 2 * 2]; the second of each pair is the patch below or right.
    sources = row_start[:, None, :, None] + column_start[None, :, None, :]
    weights = (y_weight[:, None, :, None] * x_weight[None, :, None, :]).reshape(shape)
    taps = np.where(weights == 0.0, 0, sources.reshape(shape))
    if merge.row_newline:
        taps = np.pad(taps, ((0, 0), (0, 1), (0, 0)))
        weights = np.pad(weights, ((0, 0), (0, 1), (0, 0)))
        taps[:, -1, 0], weights[:, -1, 0] = NEWLINE, 1.0
    return taps.reshape(-1, MAX_TAPS), weights.reshape(-1, MAX_TAPS)


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

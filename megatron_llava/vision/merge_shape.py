"""The shape of a merged sequence of visual tokens, in closed form: what is read, in which order.

Every merge rule comes down to at most two canvases read row by row, with special rows before,
between and behind them:

    flat           the views one below the other
    spatial        the base view, then the tiles side by side as they lay in the image
    spatial_unpad  the same, cropped to the image, perhaps shrunk, a newline after each row
    maxpool2x2     the base view, then the largest of 2 x 2 neighbours on the canvas of tiles
    one view       that view, and a newline where the merge type is an unpadding one
    video          the pooled frames one below the other, a newline after each row, after each
                   frame, once at the end, or nowhere

``csrc/plan_layout.cpp`` computes the same numbers; a property test keeps the two equal.
"""

import math
from typing import NamedTuple

from megatron_llava.config.image import ImageSettings
from megatron_llava.config.video import VideoSettings
from megatron_llava.vision.anyres import Size, select_canvas

NEWLINE = -1
"""Tap that stands for the learned image_newline row, row 0 of the special rows."""

SEPARATOR = -2
"""Tap of the learned row before each image of a sample but the first."""

IMAGE_START = -3
IMAGE_END = -4
"""Taps of the learned rows around an image."""

_SHRINK_ABOVE = 1.1


class Crop(NamedTuple):
    """A rectangle of a canvas, counted in its positions."""

    top: int
    left: int
    height: int
    width: int


class Canvas(NamedTuple):
    """Views in a grid, each of side x side positions, of which a crop is read row by row."""

    first_view: int  # at the top left
    columns: int  # views beside each other
    side: int  # u, or less where every view is resized on its own
    crop: Crop
    height: int  # rows and columns of the crop in the sequence, after shrinking
    width: int
    newline_every: int = 0  # rows; 0 for no newline
    pooling: str = "bilinear"  # of POOL_MODES: of a canvas, or of each view where side is not u

    @property
    def num_tokens(self) -> int:
        newlines = self.height // self.newline_every if self.newline_every else 0
        return self.height * self.width + newlines


class Merge(NamedTuple):
    """A whole sequence: special rows, canvases, special rows."""

    num_views: int
    before: tuple[int, ...]  # taps
    canvases: tuple[Canvas, ...]
    after: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        canvases = sum(canvas.num_tokens for canvas in self.canvases)
        return len(self.before) + canvases + len(self.after)


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


def check_size(image_size: Size) -> None:
    """Refuse a size below one pixel."""
    if image_size[0] < 1 or image_size[1] < 1:
        raise ValueError(f"image of {image_size[0]}x{image_size[1]} pixels: a side is below 1")


def grid_of_image(image_size: Size, settings: ImageSettings) -> Size:
    """(columns, rows) of tiles of the canvas chosen for an image."""
    check_size(image_size)
    # Sizes read from an array are 32 bit there, and an area may not fit.
    size = int(image_size[0]), int(image_size[1])
    width, height = select_canvas(size, settings)
    return width // settings.tile_size, height // settings.tile_size


def merge_image(
    image_size: Size, settings: ImageSettings, *, single_view: bool, after_image: bool
) -> Merge:
    """How the tokens of an image are merged; see token_layout.image_layout."""
    num_views, canvases = _image_canvases(image_size, settings, single_view)
    if settings.image_pool_stride > 1:
        pooling = settings.mm_spatial_pool_mode
        canvases = tuple(canvas._replace(pooling=pooling) for canvas in canvases)
    before = (SEPARATOR,) if after_image and settings.image_separator else ()
    after: tuple[int, ...] = ()
    if (single_view or not settings.uses_grid) and "unpad" in settings.mm_patch_merge_type:
        after = (NEWLINE,)
    if settings.image_start_end:
        before, after = (*before, IMAGE_START), (*after, IMAGE_END)
    return Merge(num_views, before, canvases, after)


def merge_video(num_frames: int, settings: VideoSettings) -> Merge:
    """How the tokens of a video are merged; see token_layout.video_layout."""
    if num_frames < 1:
        raise ValueError(f"video of {num_frames} frames: expected at least 1")
    side, position = settings.pooled_side, settings.newline_position
    every = {"grid": 1, "frame": side}.get(position, 0)
    pooling = settings.mm_spatial_pool_mode
    frames = _stacked(0, num_frames, side)._replace(newline_every=every, pooling=pooling)
    after = (NEWLINE,) if position == "one_token" else ()
    before: tuple[int, ...] = ()
    if settings.image_start_end:
        before, after = (IMAGE_START,), (*after, IMAGE_END)
    return Merge(num_frames, before, (frames,), after)


def _stacked(first_view: int, views: int, side: int) -> Canvas:
    """Views one below the other, which reads each of them whole before the next."""
    crop = Crop(0, 0, views * side, side)
    return Canvas(first_view, 1, side, crop, crop.height, crop.width)


def _image_canvases(
    image_size: Size, settings: ImageSettings, single_view: bool
) -> tuple[int, tuple[Canvas, ...]]:
    """Number of views to encode, and the canvases read from them."""
    if single_view or not settings.uses_grid:
        check_size(image_size)
        # The only view stays, whatever the merge type says about base views.
        return 1, (_stacked(0, 1, settings.merged_side),)

    merge_type = settings.mm_patch_merge_type
    columns, rows = grid_of_image(image_size, settings)
    first_tile = int(settings.has_base_view)
    views = first_tile + columns * rows
    first_merged = first_tile if "nobase" in merge_type else 0
    side = _side_of_view(image_size, settings, views - first_merged)
    if merge_type.startswith("flat"):
        return views, (_stacked(first_merged, views - first_merged, side),)

    base = () if first_merged == first_tile else (_stacked(0, 1, side),)
    crop = Crop(0, 0, rows * side, columns * side)
    height, width = crop.height, crop.width
    unpad = "unpad" in merge_type and not settings.pools_canvas
    if unpad:
        size = int(image_size[0]), int(image_size[1])
        crop = unpad_crop(size, (columns * side, rows * side), settings.unpad_round)
        height, width = _shrink(crop, settings)
    elif settings.pools_canvas:
        height, width = crop.height // 2, crop.width // 2
    if height * width == 0 and (not base or crop.height * crop.width > 0):
        raise ValueError(
            f"image of {image_size[0]}x{image_size[1]} pixels is too thin: --image-aspect-ratio "
            f"{settings.image_aspect_ratio} with --mm-patch-merge-type {merge_type} leaves "
            f"{height}x{width} patches of its {columns}x{rows} tiles; remove the image or crop it"
        )
    pooling = "max" if settings.pools_canvas else "bilinear"
    canvas = Canvas(first_tile, columns, side, crop, height, width, int(unpad), pooling)
    return views, (*base, canvas)


def _side_of_view(image_size: Size, settings: ImageSettings, merged_views: int) -> int:
    """Positions per side of each merged view; anyres_thresholded_N shrinks all alike.

    Over the threshold of (N + 1) * T tokens, newlines not counted, each of the merged views gets an
    equal part of it: side = floor(sqrt(threshold / views)).
    """
    threshold, tokens = settings.token_threshold, settings.tokens_per_view
    if threshold is None or merged_views * tokens <= threshold:
        return settings.merged_side
    side = math.isqrt(threshold // merged_views)
    if side == 0:
        raise ValueError(
            f"image of {image_size[0]}x{image_size[1]} pixels: --image-aspect-ratio "
            f"{settings.image_aspect_ratio} leaves {threshold} tokens for {merged_views} views: "
            "raise its number, or lower --image-grid-pinpoints"
        )
    return side


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

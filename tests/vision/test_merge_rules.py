"""Every merge rule against the rule itself, done to feature maps with torch."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_llava.config.image import ImageSettings
from megatron_llava.config.image_checks import MERGE_TYPES
from megatron_llava.config.video import NEWLINE_POSITIONS, VideoSettings
from megatron_llava.vision.anyres import parse_grid_pinpoints
from megatron_llava.vision.merge_shape import grid_of_image
from megatron_llava.vision.token_layout import (
    ImageLayout,
    image_layout,
    number_of_tokens,
    number_of_video_tokens,
    video_layout,
)

HIDDEN = 3
SPECIALS = torch.arange(1.0, 1 + 4 * HIDDEN).reshape(4, HIDDEN) * 1000  # [4, H]
NEWLINE, SEPARATOR, START, END = SPECIALS
SMALL = ImageSettings(  # u = 4
    tile_size=56,
    patch_size=14,
    image_aspect_ratio="anyres",
    grid_pinpoints=parse_grid_pinpoints("(1x1),...,(4x4)", 56),
    mm_patch_merge_type="spatial_unpad",
    unpad_round="llava",
    resize_mode="squash",
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)
SO400M = replace(SMALL, tile_size=384, grid_pinpoints=parse_grid_pinpoints("(1x1),...,(6x6)", 384))
VIDEO = VideoSettings(tile_size=384, patch_size=14, mm_patch_merge_type="spatial_unpad")


def features_of(views: int, tokens: int) -> torch.Tensor:
    """[V, T, H], another number everywhere."""
    return torch.randn(views, tokens, HIDDEN, generator=torch.manual_seed(views))


def applied(layout: ImageLayout, features_VTH: torch.Tensor) -> torch.Tensor:
    """The layout's sums over the features and the special rows, and the largest where it says."""
    table = torch.cat([features_VTH.flatten(0, 1), SPECIALS.flip(0)])  # tap -1 is the newline
    taps, weights = torch.tensor(layout.taps), torch.tensor(layout.weights)
    sums = (table[taps] * weights[:, :, None]).sum(1)
    is_largest = (weights < 0).all(1, keepdim=True)
    return torch.where(is_largest, table[taps].amax(1), sums)


def resized(maps_VHYX: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return F.interpolate(maps_VHYX, (height, width), mode="bilinear")


def rows_with_newlines(map_HYX: torch.Tensor) -> torch.Tensor:
    """Tokens of a feature map, a newline after each row."""
    height = map_HYX.shape[1]
    column = NEWLINE[:, None, None].expand(-1, height, 1)
    return torch.cat([map_HYX, column], dim=2).flatten(1).T


def merged_image(
    features_VTH: torch.Tensor, size: tuple[int, int], image: ImageSettings
) -> torch.Tensor:
    """The rule: what LLaVA-NeXT does with the views of an image, on feature maps."""
    side, kind = image.patches_per_side, image.mm_patch_merge_type
    maps = features_VTH.transpose(1, 2).unflatten(2, (side, side))  # [V, H, u, u]
    if not image.uses_grid:
        tokens = features_VTH[0]
        return torch.cat([tokens, NEWLINE[None]]) if "unpad" in kind else tokens
    columns, rows = grid_of_image(size, image)
    first_tile = len(maps) - columns * rows
    if "nobase" in kind:
        maps, first_tile = maps[first_tile:], 0
    if image.image_aspect_ratio.startswith("anyres_thresholded_"):
        threshold = (int(image.image_aspect_ratio.split("_")[-1]) + 1) * side * side
        if len(maps) * side * side > threshold:
            side = math.floor(math.sqrt(threshold / len(maps)))
            maps = resized(maps, side, side)
    sequences = maps.flatten(2).transpose(1, 2)  # [V, side * side, H]
    if kind.startswith("flat"):
        return sequences.flatten(0, 1)
    canvas = torch.cat(
        [torch.cat(list(row), dim=2) for row in maps[first_tile:].split(columns)], dim=1
    )
    if "maxpool2x2" in kind:
        merged = F.max_pool2d(canvas, 2).flatten(1).T
    elif "unpad" in kind:
        canvas = cropped(canvas, size, image.unpad_round)
        if image.image_aspect_ratio.startswith("anyres_max_"):
            most = int(image.image_aspect_ratio.split("_")[-1]) * side * side
            ratio = math.sqrt(canvas.shape[1] * canvas.shape[2] / most)
            if ratio > 1.1:
                sides = int(canvas.shape[1] // ratio), int(canvas.shape[2] // ratio)
                canvas = resized(canvas[None], *sides)[0]
        merged = rows_with_newlines(canvas)
    else:
        merged = canvas.flatten(1).T
    return torch.cat([sequences[:first_tile].flatten(0, 1), merged])


def cropped(canvas_HYX: torch.Tensor, size: tuple[int, int], rounding: str) -> torch.Tensor:
    """The canvas without the rows or columns that only padding fell on."""
    (width, height), (high, wide) = size, canvas_HYX.shape[1:]
    by_width = width / height > wide / high
    kept = height * (wide / width) if by_width else width * (high / height)
    kept = int(round(kept, 7)) if rounding == "hf" else int(kept)
    cut = ((high if by_width else wide) - kept) // 2
    if by_width:
        return canvas_HYX[:, cut : high - cut]
    return canvas_HYX[:, :, cut : wide - cut]


def assert_follows(layout: ImageLayout, features: torch.Tensor, expected: torch.Tensor) -> None:
    found = applied(layout, features)
    assert found.shape == expected.shape
    if ((layout.weights[:, 1:] == 0) | (layout.weights[:, :1] < 0)).all():
        assert torch.equal(found, expected)
    else:
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=2e-6)


ASPECT_RATIOS = [
    *["square", "pad", "anyres", "nobase", "anyres_max_1", "anyres_max_3"],
    *["anyres_thresholded_1", "anyres_thresholded_4"],
]


@pytest.mark.proves("A6", "A7")
@pytest.mark.parametrize("aspect_ratio", ASPECT_RATIOS)
@pytest.mark.parametrize("merge_type", MERGE_TYPES)
@given(
    size=st.tuples(st.integers(8, 2000), st.integers(8, 2000)),
    unpad_round=st.sampled_from(["llava", "hf"]),
)
@settings(max_examples=25, deadline=None)
def test_image_rules(aspect_ratio, merge_type, size, unpad_round):
    changes = {"mm_patch_merge_type": merge_type, "unpad_round": unpad_round}
    if aspect_ratio in ("square", "pad"):
        changes["grid_pinpoints"] = ()
    if "maxpool" in merge_type and "_" in aspect_ratio:
        pytest.skip("both resize features: refused")
    image = replace(SMALL, image_aspect_ratio=aspect_ratio, **changes)
    try:
        layout = image_layout(size, image)
    except ValueError as error:
        assert "too thin" in str(error)
        return
    features = features_of(layout.num_views, image.tokens_per_view)
    assert_follows(layout, features, merged_image(features, size, image))


@pytest.mark.proves("A6")
@pytest.mark.parametrize("tile", [42, 56])
@pytest.mark.parametrize("base", ["", "_nobase"])
@given(size=st.tuples(st.integers(8, 2000), st.integers(8, 2000)))
@settings(max_examples=25, deadline=None)
def test_the_largest_of_a_canvas_are_taken_across_tiles(tile, base, size):
    """Tiles of 3 features a side: every second window lies in two tiles, or in four."""
    image = replace(
        SMALL,
        tile_size=tile,
        grid_pinpoints=parse_grid_pinpoints("(1x1),...,(3x4)", tile),
        mm_patch_merge_type=f"spatial_maxpool2x2{base}",
    )
    layout = image_layout(size, image)
    features = features_of(layout.num_views, image.tokens_per_view)
    assert_follows(layout, features, merged_image(features, size, image))


@pytest.mark.proves("A6")
def test_counts_of_the_original_with_the_largest():
    """800 x 600 on 2 x 2 tiles of SigLIP, as the original code was seen to count."""
    image = replace(SO400M, grid_pinpoints=((768, 768),))
    for kind, tokens in (("spatial_maxpool2x2", 1458), ("spatial_maxpool2x2_nobase", 729)):
        assert number_of_tokens((800, 600), replace(image, mm_patch_merge_type=kind)) == tokens


@pytest.mark.proves("A7")
@pytest.mark.parametrize("views", [4, 9, 16])
@pytest.mark.parametrize("columns", [2, 4, 5, 6])
def test_thresholded_counts_of_the_published_table(views: int, columns: int):
    grid = {"grid_pinpoints": ((384 * columns, 384 * columns),), "mm_patch_merge_type": "spatial"}
    image = replace(SO400M, image_aspect_ratio=f"anyres_thresholded_{views}", **grid)
    threshold, merged = (views + 1) * 729, columns**2 + 1
    tokens = number_of_tokens((2000, 2000), image)
    if merged * 729 <= threshold:
        assert tokens == merged * 729
    else:
        side = {
            (4, 4): 14, (4, 5): 11, (4, 6): 9, (9, 4): 20, (9, 5): 16, (9, 6): 14,
            (16, 5): 21, (16, 6): 18,
        }[views, columns]  # fmt: skip
        assert tokens == merged * side**2 <= threshold
        # One more row and column would be too many.
        assert merged * (side + 1) ** 2 > threshold


def test_a_threshold_that_leaves_nothing_is_refused():
    one_patch = replace(SMALL, patch_size=56, image_aspect_ratio="anyres_thresholded_1")
    message = "image of 224x224 .*anyres_thresholded_1 leaves 2 tokens for 17 views: raise"
    for function in (number_of_tokens, image_layout):
        with pytest.raises(ValueError, match=message):
            function((224, 224), one_patch)


@pytest.mark.proves("A19", "A20")
@pytest.mark.parametrize("separator", [False, True])
@pytest.mark.parametrize("start_end", [False, True])
@pytest.mark.parametrize("after_image", [False, True])
@pytest.mark.parametrize("single_view", [False, True])
def test_special_rows(separator, start_end, after_image, single_view):
    size, flags = (100, 60), {"single_view": single_view, "after_image": after_image}
    image = replace(SMALL, image_separator=separator, image_start_end=start_end)
    plain = image_layout(size, SMALL, single_view=single_view)
    features = features_of(plain.num_views, SMALL.tokens_per_view)
    parts = [SEPARATOR[None]] if separator and after_image else []
    parts += [START[None]] if start_end else []
    parts += [applied(plain, features)]
    parts += [END[None]] if start_end else []
    layout = image_layout(size, image, **flags)
    assert torch.equal(applied(layout, features), torch.cat(parts))
    assert number_of_tokens(size, image, **flags) == len(layout.taps)
    assert image.num_special_rows == (4 if start_end else 2 if separator else 1)


def merged_video(features_FTH: torch.Tensor, video: VideoSettings) -> torch.Tensor:
    """The rule: what LLaVA-NeXT does with the frames of a video, on feature maps."""
    side, stride = video.patches_per_side, video.mm_spatial_pool_stride
    maps = features_FTH.transpose(1, 2).unflatten(2, (side, side))
    if video.mm_spatial_pool_mode == "average":
        maps = F.avg_pool2d(maps, stride)
    elif video.mm_spatial_pool_mode == "max":
        maps = F.max_pool2d(maps, stride)
    else:
        maps = resized(maps, math.ceil(side / stride), math.ceil(side / stride))
    frames = maps.flatten(2).transpose(1, 2)  # [F, tokens, H]
    if video.mm_patch_merge_type.startswith("flat"):
        return frames.flatten(0, 1)
    position = video.mm_newline_position
    if position == "grid":
        return torch.cat([rows_with_newlines(frame) for frame in maps])
    if position == "frame":
        newlines = NEWLINE.expand(len(frames), 1, -1)
        return torch.cat([frames, newlines], dim=1).flatten(0, 1)
    tokens = frames.flatten(0, 1)
    has_newline = position == "one_token" and "unpad" in video.mm_patch_merge_type
    return torch.cat([tokens, NEWLINE[None]]) if has_newline else tokens


@pytest.mark.proves("A11")
@pytest.mark.parametrize("position", NEWLINE_POSITIONS)
@pytest.mark.parametrize("merge_type", MERGE_TYPES)
@pytest.mark.parametrize(
    ("mode", "stride"),
    [
        *[("bilinear", 1), ("bilinear", 2), ("bilinear", 3)],
        *[("average", 1), ("average", 2), ("max", 1), ("max", 2)],
    ],
)
@pytest.mark.parametrize("side", [4, 5, 27])
def test_video_rules(position, merge_type, mode, stride, side):
    if position in ("grid", "frame") and merge_type.startswith("spatial"):
        merge_type = merge_type.replace("spatial", "spatial_unpad").replace("unpad_unpad", "unpad")
    video = VideoSettings(
        tile_size=side * 14,
        patch_size=14,
        mm_patch_merge_type=merge_type,
        mm_spatial_pool_mode=mode,
        mm_spatial_pool_stride=stride,
        mm_newline_position=position,
    )
    for frames in (1, 3):
        layout = video_layout(frames, video)
        features = features_of(frames, side * side)
        assert layout.num_views == frames
        assert number_of_video_tokens(frames, video) == len(layout.taps)
        assert_follows(layout, features, merged_video(features, video))


@pytest.mark.parametrize(
    ("position", "tokens"), [("grid", 840), ("frame", 788), ("one_token", 785), ("no_token", 784)]
)
def test_video_counts_of_the_original(position: str, tokens: int):
    assert number_of_video_tokens(4, replace(VIDEO, mm_newline_position=position)) == tokens


def test_average_pooling_cuts_what_is_left_over():
    pooled = replace(VIDEO, mm_spatial_pool_mode="average", mm_newline_position="no_token")
    assert number_of_video_tokens(1, pooled) == 169


def test_start_and_end_of_a_video():
    layout = video_layout(2, replace(VIDEO, image_start_end=True))
    plain = video_layout(2, VIDEO)
    assert layout.taps[[0, -1], 0].tolist() == [-3, -4]
    assert np.array_equal(layout.taps[1:-1], plain.taps)
    with pytest.raises(ValueError, match="video of 0 frames"):
        video_layout(0, VIDEO)

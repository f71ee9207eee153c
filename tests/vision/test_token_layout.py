"""The number of visual tokens and where each one comes from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_llava.config.image import ImageSettings
from megatron_llava.config.image_checks import MERGE_TYPES
from megatron_llava.vision.anyres import parse_grid_pinpoints, select_best_resolution
from megatron_llava.vision.merge_shape import NEWLINE, unpad_crop
from megatron_llava.vision.token_layout import (
    image_layout,
    number_of_tokens,
    number_of_views,
)

FIVE = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
HALF = (0.5, 0.5, 0.5)
CLIP5 = ImageSettings(
    tile_size=336,
    patch_size=14,
    image_aspect_ratio="anyres",
    grid_pinpoints=FIVE,
    mm_patch_merge_type="spatial_unpad",
    unpad_round="llava",
    resize_mode="shortest_edge_crop",
    image_mean=HALF,
    image_std=HALF,
)
SIGLIP36 = replace(
    CLIP5,
    tile_size=384,
    image_aspect_ratio="anyres_max_9",
    grid_pinpoints=parse_grid_pinpoints("(1x1),...,(6x6)", 384),
    resize_mode="squash",
)
TINY = replace(  # u = 2, T = 4
    CLIP5, tile_size=28, grid_pinpoints=parse_grid_pinpoints("(1x1),...,(3x3)", 28)
)


@pytest.mark.parametrize(
    ("image_size", "clip5", "siglip36"),
    [
        ((1024, 899), 2634, 6551),
        ((1920, 1080), 1948, 7269),
        ((336, 336), 1176, 1485),
        ((384, 384), 2928, 1485),
        ((640, 480), 2340, 2929),
        ((500, 375), 2340, 1728),
        ((2304, 2304), 2928, 7371),
    ],
)
@pytest.mark.parametrize("unpad_round", ["llava", "hf"])
def test_counts_of_the_original(
    image_size: tuple[int, int], clip5: int, siglip36: int, unpad_round: str
) -> None:
    assert number_of_tokens(image_size, replace(CLIP5, unpad_round=unpad_round)) == clip5
    assert number_of_tokens(image_size, replace(SIGLIP36, unpad_round=unpad_round)) == siglip36


@pytest.mark.proves("A8")
def test_largest_count_under_a_cap_is_above_the_nominal_one() -> None:
    # Up to 1.1^2 * N * T patches stay unshrunk: more than (N + 1) * T = 7290.
    assert number_of_tokens((947, 1155), SIGLIP36) == 8765


@pytest.mark.proves("A6")
@pytest.mark.parametrize(
    ("merge_type", "tokens"),
    [
        ("flat", 3645),
        ("flat_nobase", 2916),
        ("spatial", 3645),
        ("spatial_nobase", 2916),
        ("spatial_unpad", 2929),
        ("spatial_unpad_nobase", 2200),
    ],
)
def test_merge_types_at_800x600(merge_type: str, tokens: int) -> None:
    # A 2x2 canvas of 729-token views.
    anyres = replace(
        SIGLIP36,
        image_aspect_ratio="anyres",
        grid_pinpoints=((768, 768),),
        mm_patch_merge_type=merge_type,
    )
    assert number_of_tokens((800, 600), anyres) == tokens
    assert number_of_views((800, 600), anyres) == 5
    no_base = replace(anyres, image_aspect_ratio="nobase")
    assert number_of_views((800, 600), no_base) == 4
    merged_base = 0 if merge_type.endswith("_nobase") else 729
    assert number_of_tokens((800, 600), no_base) == tokens - merged_base


@pytest.mark.parametrize(
    ("configuration", "sizes"),
    [
        (CLIP5, [(984, 205), (1056, 220), (1128, 235)]),
        (
            replace(SIGLIP36, image_aspect_ratio="anyres"),
            [(369, 820), (375, 1375), (738, 820), (750, 1375), (1107, 820), (1125, 1375)],
        ),
    ],
)
def test_the_two_roundings_differ_where_the_product_falls_just_short(
    configuration: ImageSettings, sizes: list[tuple[int, int]]
) -> None:
    by_hf = replace(configuration, unpad_round="hf")
    for size in sizes:
        assert number_of_tokens(size, configuration) != number_of_tokens(size, by_hf), size
        for each in (configuration, by_hf):
            assert len(image_layout(size, each).taps) == number_of_tokens(size, each)


def test_rounding_example() -> None:
    configuration = replace(SIGLIP36, image_aspect_ratio="anyres")
    assert number_of_tokens((738, 820), configuration) == 3974
    assert number_of_tokens((738, 820), replace(configuration, unpad_round="hf")) == 4084


def test_unpad_keeps_an_extra_row_where_parities_differ() -> None:
    assert unpad_crop((800, 600), (54, 54), "llava") == (7, 0, 40, 54)  # 40.5 rows: 40
    assert unpad_crop((1000, 700), (54, 54), "llava") == (8, 0, 38, 54)  # 37.8 rows: 37 + 1
    assert unpad_crop((600, 800), (54, 54), "hf") == (0, 7, 54, 40)


@pytest.mark.parametrize("aspect_ratio", ["square", "pad"])
@pytest.mark.parametrize("merge_type", MERGE_TYPES)
def test_one_view_modes(aspect_ratio: str, merge_type: str) -> None:
    one = replace(
        TINY, image_aspect_ratio=aspect_ratio, grid_pinpoints=(), mm_patch_merge_type=merge_type
    )
    layout = image_layout((90, 40), one)
    newline = [NEWLINE] if "unpad" in merge_type else []
    assert layout.num_views == 1
    assert layout.taps[:, 0].tolist() == [0, 1, 2, 3, *newline]
    assert (layout.taps[:, 1:] == 0).all()
    assert (layout.weights == [1, 0, 0, 0]).all()


@pytest.mark.parametrize("aspect_ratio", ["anyres", "anyres_max_4", "nobase"])
def test_images_that_share_a_sample_get_one_view(aspect_ratio: str) -> None:
    grid = replace(SIGLIP36, image_aspect_ratio=aspect_ratio)
    assert number_of_views((2000, 1000), grid, single_view=True) == 1
    assert number_of_tokens((2000, 1000), grid, single_view=True) == 730
    assert image_layout((2000, 1000), grid, single_view=True).num_views == 1


def test_rows_of_a_canvas_read_across_its_tiles() -> None:
    layout = image_layout((56, 28), TINY)  # base view, then two tiles side by side
    assert layout.num_views == 3
    base, upper, lower = [0, 1, 2, 3], [4, 5, 8, 9], [6, 7, 10, 11]
    assert layout.taps[:, 0].tolist() == [*base, *upper, NEWLINE, *lower, NEWLINE]
    flat = image_layout((56, 28), replace(TINY, mm_patch_merge_type="flat_nobase"))
    assert flat.taps[:, 0].tolist() == list(range(4, 12))


def test_a_grid_of_one_tile_still_has_a_base_view_and_a_canvas() -> None:
    assert image_layout((28, 28), TINY).taps[:, 0].tolist() == [
        *[0, 1, 2, 3],
        *[4, 5, NEWLINE, 6, 7, NEWLINE],
    ]


def test_nobase_keeps_the_only_tile() -> None:
    no_base = replace(TINY, image_aspect_ratio="nobase")
    layout = image_layout((28, 28), no_base)
    assert layout.num_views == 1
    assert layout.taps[:, 0].tolist() == [0, 1, NEWLINE, 2, 3, NEWLINE]


@pytest.mark.proves("A5")
@pytest.mark.parametrize("size", [(28, 28), (80, 30), (33, 90), (500, 500)])
@pytest.mark.parametrize("family", ["flat", "spatial", "spatial_unpad"])
def test_nobase_mode_is_the_nobase_merge_without_the_unused_view(
    size: tuple[int, int], family: str
) -> None:
    merged_out = image_layout(size, replace(TINY, mm_patch_merge_type=f"{family}_nobase"))
    not_encoded = image_layout(
        size, replace(TINY, image_aspect_ratio="nobase", mm_patch_merge_type=family)
    )
    assert not_encoded.num_views == merged_out.num_views - 1
    shifted = np.where(merged_out.taps == NEWLINE, NEWLINE, merged_out.taps - TINY.tokens_per_view)
    assert (not_encoded.taps == np.where(merged_out.weights == 0, 0, shifted)).all()


def test_an_image_thinner_than_its_patches() -> None:
    thin = (1, 10_000)
    # The crop keeps rows of zero width: newlines are all that follows the base view.
    assert number_of_tokens(thin, CLIP5) == 576 + 48
    assert (image_layout(thin, CLIP5).taps[576:, 0] == NEWLINE).all()
    assert number_of_tokens((10_000, 1), CLIP5) == 576
    for changes in (
        {"image_aspect_ratio": "nobase"},
        {"mm_patch_merge_type": "spatial_unpad_nobase"},
    ):
        with pytest.raises(ValueError, match="image of 10000x1 pixels .*--mm-patch-merge-type"):
            number_of_tokens((10_000, 1), replace(CLIP5, **changes))


def test_a_cap_that_leaves_no_row_is_refused() -> None:
    # 2 x 6 patches against a budget of 4: t = 1.73 and int(1 // t) would be no row at all.
    capped = replace(TINY, image_aspect_ratio="anyres_max_1", patch_size=28)
    with pytest.raises(ValueError, match="image of 84x28 pixels is too thin: .*anyres_max_1"):
        image_layout((84, 28), capped)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-3, 4)])
@pytest.mark.parametrize("single_view", [False, True])
def test_impossible_sizes_are_refused(size: tuple[int, int], single_view: bool) -> None:
    for function in (number_of_tokens, number_of_views, image_layout):
        with pytest.raises(ValueError, match=f"image of {size[0]}x{size[1]} pixels"):
            function(size, CLIP5, single_view=single_view)


def test_sizes_from_an_array_do_not_overflow() -> None:
    # 50,000 * 60,000 does not fit in 32 bits; by arithmetic on int32 another canvas would win.
    select_best_resolution.cache_clear()
    stored = tuple(np.array([50_000, 60_000], dtype=np.int32))
    assert number_of_views(stored, CLIP5) == 5
    assert number_of_tokens(stored, CLIP5) == 576 + 48 * (40 + 1)


def test_layouts_are_cached_and_read_only() -> None:
    layout = image_layout((640, 480), CLIP5)
    assert layout is image_layout((640, 480), replace(CLIP5))
    for array in (layout.taps, layout.weights):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 5


@pytest.mark.parametrize("image_size", [(2304, 2304), (1920, 1080), (500, 2300), (947, 1300)])
def test_shrinking_is_bilinear_interpolation(image_size: tuple[int, int]) -> None:
    whole = replace(SIGLIP36, image_aspect_ratio="anyres")
    uncapped = image_layout(image_size, whole).taps[729:, 0]
    capped = image_layout(image_size, replace(SIGLIP36, image_aspect_ratio="anyres_max_4"))
    rows = int((uncapped == NEWLINE).sum())
    new_rows = int((capped.taps[:, 0] == NEWLINE).sum())
    # One random number per patch of the canvas stands for its feature.
    values = np.random.default_rng(0).standard_normal(37 * 729).astype(np.float32)
    canvas = torch.from_numpy(values[uncapped].reshape(rows, -1)[:, :-1].copy())
    new_columns = (len(capped.taps) - 729) // new_rows - 1
    expected = torch.nn.functional.interpolate(
        canvas[None, None], (new_rows, new_columns), mode="bilinear"
    )[0, 0]
    shrunk = (values[capped.taps] * capped.weights).sum(1)[729:].reshape(new_rows, -1)[:, :-1]
    torch.testing.assert_close(torch.from_numpy(shrunk.copy()), expected, rtol=0, atol=1e-6)


@st.composite
def _settings(draw: st.DrawFn) -> ImageSettings:
    aspect_ratio = draw(
        st.sampled_from(["square", "pad", "anyres", "nobase", "anyres_max_1", "anyres_max_4"])
    )
    grids = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=6))
    kinds = [kind for kind in MERGE_TYPES if not ("maxpool" in kind and "max" in aspect_ratio)]
    one_view = aspect_ratio in ("square", "pad")
    return replace(
        CLIP5,
        tile_size=56,
        patch_size=draw(st.sampled_from([14, 20, 28, 56])),
        image_aspect_ratio=aspect_ratio,
        grid_pinpoints=() if one_view else tuple((56 * a, 56 * b) for a, b in grids),
        mm_patch_merge_type=draw(st.sampled_from(kinds)),
        unpad_round=draw(st.sampled_from(["llava", "hf"])),
    )


@given(st.integers(1, 3000), st.integers(1, 3000), _settings(), st.booleans())
@settings(max_examples=400, deadline=None)
def test_layout_and_counts_agree(
    width: int, height: int, configuration: ImageSettings, single_view: bool
) -> None:
    size = (width, height)
    try:
        tokens = number_of_tokens(size, configuration, single_view=single_view)
    except ValueError:
        with pytest.raises(ValueError, match="too thin"):
            image_layout(size, configuration, single_view=single_view)
        return
    layout = image_layout(size, configuration, single_view=single_view)
    views = number_of_views(size, configuration, single_view=single_view)
    assert layout.num_views == views
    assert layout.taps.shape == layout.weights.shape == (tokens, 4)
    assert layout.taps.dtype == np.int64 and layout.weights.dtype == np.float32
    assert layout.taps.min() >= NEWLINE
    assert layout.taps.max() < views * configuration.tokens_per_view
    used = layout.weights != 0
    assert (layout.taps[~used] == 0).all()
    # A row is a mean, or the largest of four.
    largest = layout.weights[:, 0] < 0
    assert (layout.weights[largest] == -0.25).all() and (layout.weights[~largest] >= 0).all()
    assert not largest.any() or "maxpool" in configuration.mm_patch_merge_type
    assert np.allclose(layout.weights.sum(1), np.where(largest, -1.0, 1.0), atol=1e-6)
    # A newline is a row of its own, and a copied feature row appears once.
    newline = layout.taps == NEWLINE
    assert not newline[:, 1:].any() and (layout.weights[newline[:, 0]] == [1, 0, 0, 0]).all()
    copied = layout.taps[(used.sum(1) == 1) & ~newline[:, 0], 0]
    assert len(np.unique(copied)) == len(copied)


def _tokens(features: torch.Tensor, layout) -> torch.Tensor:
    """[R, H] of feature rows [V * T, H]; special rows are zeros."""
    rows = torch.cat([features, torch.zeros(4, features.shape[1], dtype=features.dtype)])
    weights = torch.from_numpy(layout.weights.copy()).to(features.dtype)
    taken = rows[torch.from_numpy(layout.taps.copy())]
    sums = (taken * weights[..., None]).sum(1)
    return torch.where((weights < 0).all(1, keepdim=True), taken.amax(1), sums)


@pytest.mark.proves("A21")
@pytest.mark.parametrize("merge_type", ["flat", "spatial", "spatial_unpad"])
@pytest.mark.parametrize(
    ("mode", "stride", "side"),
    [("bilinear", 2, 4), ("average", 2, 3), ("max", 2, 3), ("bilinear", 3, 3)],
)
@pytest.mark.parametrize("single_view", [False, True])
def test_pooled_views_are_merged_as_views_of_fewer_features(
    merge_type: str, mode: str, stride: int, side: int, single_view: bool
) -> None:
    plain = replace(
        CLIP5, tile_size=98, grid_pinpoints=((196, 294),), mm_patch_merge_type=merge_type
    )
    pooling = replace(plain, image_pool_stride=stride, mm_spatial_pool_mode=mode)
    views = number_of_views((300, 200), pooling, single_view=single_view)
    features = torch.randn(views, 5, 7, 7, dtype=torch.float64)  # [V, H, u, u]
    pooled = {
        "average": lambda: torch.nn.functional.avg_pool2d(features, stride),
        "max": lambda: torch.nn.functional.max_pool2d(features, stride),
        "bilinear": lambda: torch.nn.functional.interpolate(
            features, (side, side), mode="bilinear"
        ),
    }[mode]()
    # Of views with so many features to begin with.
    fewer = replace(plain, patch_size=98 // side)
    assert fewer.patches_per_side == pooled.shape[-1] == pooling.merged_side == side
    layouts = [
        image_layout((300, 200), settings, single_view=single_view) for settings in (pooling, fewer)
    ]
    found, expected = (
        _tokens(grid.permute(0, 2, 3, 1).reshape(-1, 5), layout)
        for grid, layout in zip((features, pooled), layouts, strict=True)
    )
    assert len(found) == number_of_tokens((300, 200), pooling, single_view=single_view)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.proves("A21")
def test_a_ratio_of_two_leaves_a_quarter_of_the_tokens() -> None:
    pooling = replace(CLIP5, mm_patch_merge_type="flat", image_pool_stride=2)
    assert number_of_tokens((640, 480), pooling) == 5 * 144
    assert number_of_tokens((640, 480), replace(pooling, image_pool_stride=1)) == 5 * 576


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_pool_stride": 0}, "--image-pool-stride 0"),
        ({"image_pool_stride": 3, "mm_spatial_pool_mode": "average"}, "expected 1 or 2"),
        ({"image_pool_stride": 2, "image_aspect_ratio": "anyres_max_9"}, "both resize"),
        ({"image_pool_stride": 2, "image_aspect_ratio": "anyres_thresholded_4"}, "both resize"),
    ],
)
def test_pooling_that_cannot_be_is_refused(changes, words) -> None:
    with pytest.raises(ValueError) as caught:
        replace(CLIP5, **changes)
    assert words in str(caught.value)

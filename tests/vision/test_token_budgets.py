"""Numbers of visual tokens that LLaVA's documents state, at the sizes of the published models."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_settings import NEXT, ONEVISION

from megatron_llava.config.video import VideoSettings
from megatron_llava.vision.anyres import parse_grid_pinpoints
from megatron_llava.vision.token_layout import (
    number_of_tokens,
    number_of_video_tokens,
    number_of_views,
)

VIDEO = VideoSettings(tile_size=384, patch_size=14, mm_patch_merge_type="spatial_unpad")
SIZES = st.tuples(st.integers(30, 4000), st.integers(30, 4000))


@pytest.mark.proves("A5")
def test_two_meanings_of_nobase():
    """No base view, as the documents say; or, as the original code does, one square view."""
    dropped = replace(ONEVISION, image_aspect_ratio="nobase")
    literal = replace(ONEVISION, image_aspect_ratio="square", grid_pinpoints=())
    assert number_of_views((2304, 2304), dropped) == 36
    assert number_of_tokens((2304, 2304), dropped) == 162 * 163 == 26_406
    assert number_of_views((2304, 2304), literal) == 1
    assert number_of_tokens((2304, 2304), literal) == 729 + 1


@pytest.mark.proves("A8")
@pytest.mark.parametrize(
    ("side", "patch", "each"), [(224, 14, 256), (336, 14, 576), (384, 14, 729), (448, 14, 1024)]
)
def test_five_views_of_every_tower(side, patch, each):
    square = replace(
        NEXT,
        tile_size=side,
        patch_size=patch,
        grid_pinpoints=((2 * side, 2 * side),),
        mm_patch_merge_type="spatial",
    )
    assert square.tokens_per_view == each
    assert number_of_tokens((1000, 1000), square) == 5 * each


@pytest.mark.proves("A8")
@pytest.mark.parametrize(("views", "budget"), [(4, 3645), (9, 7290), (16, 12393)])
def test_budgets_of_the_largest_image(views, budget):
    assert budget == (views + 1) * 729

    @given(SIZES)
    def check(size):
        capped = replace(ONEVISION, image_aspect_ratio=f"anyres_max_{views}")
        # Up to 1.1 times each side is left as it is, and each row has a newline.
        assert number_of_tokens(size, capped) <= 729 + 1.21 * views * 729 + 6 * 27
        thresholded = replace(
            ONEVISION,
            image_aspect_ratio=f"anyres_thresholded_{views}",
            mm_patch_merge_type="spatial",
        )
        assert number_of_tokens(size, thresholded) <= budget

    check()


PATCHES = replace(
    NEXT,
    grid_pinpoints=parse_grid_pinpoints("max_patches=6", 336),
    grid_choice="aspect_ratio",
    mm_patch_merge_type="flat",
)


@pytest.mark.proves("A14")
def test_a_screen_of_at_most_six_patches():
    assert number_of_views((1920, 1080), PATCHES) == 7
    assert number_of_tokens((1920, 1080), PATCHES) == 7 * 576 == 4032
    # A small image is not enlarged by LLaVA-NeXT's choice among the same grids.
    assert number_of_views((300, 300), PATCHES) == 5
    assert number_of_views((300, 300), replace(PATCHES, grid_choice="resolution")) == 2


@pytest.mark.proves("A15")
@pytest.mark.parametrize(("most", "views"), [(6, 7), (4, 5), (2, 3)])
def test_presets_of_quality(most, views):
    grids = parse_grid_pinpoints(f"max_patches={most}", 336)
    assert number_of_views((900, 600), replace(PATCHES, grid_pinpoints=grids)) == views


@pytest.mark.proves("A9")
@pytest.mark.parametrize(("newline", "tokens"), [(True, 730), (False, 729)])
def test_one_of_several_images(newline, tokens):
    image = ONEVISION if newline else replace(ONEVISION, mm_patch_merge_type="spatial")
    assert number_of_views((1920, 1080), image, single_view=True) == 1
    assert number_of_tokens((1920, 1080), image, single_view=True) == tokens


@pytest.mark.proves("A11")
@pytest.mark.parametrize(
    ("frames", "nominal"), [(40, 10 * 729), (64, 16 * 729), (10, 10 * 729 / 4), (16, 4 * 729)]
)
def test_a_quarter_of_the_tokens_is_nominal(frames, nominal):
    """The documents count 729 / 4 = 182.25 a frame; pooling makes 14 x 14 or 13 x 13."""
    counts = {
        mode: number_of_video_tokens(frames, replace(VIDEO, **changes))
        for mode, changes in {
            "bilinear": {"mm_newline_position": "no_token"},
            "average": {"mm_newline_position": "no_token", "mm_spatial_pool_mode": "average"},
            "none": {"mm_newline_position": "no_token", "mm_spatial_pool_stride": 1},
        }.items()
    }
    assert counts == {"bilinear": frames * 196, "average": frames * 169, "none": frames * 729}
    assert counts["average"] < nominal < counts["bilinear"] and counts["none"] == 4 * nominal


@pytest.mark.proves("A20")
@given(st.lists(SIZES, min_size=1, max_size=6))
def test_a_separator_stands_before_every_image_but_the_first(sizes):
    def total(separator: bool) -> int:
        image = replace(ONEVISION, image_separator=separator)
        return sum(
            number_of_tokens(size, image, single_view=len(sizes) > 1, after_image=number > 0)
            for number, size in enumerate(sizes)
        )

    assert total(True) - total(False) == len(sizes) - 1


@pytest.mark.proves("A19", "C2")
def test_no_token_is_added_around_images_unless_asked_for():
    framed = replace(ONEVISION, image_start_end=True)
    assert not ONEVISION.image_start_end
    assert number_of_tokens((640, 480), framed) == number_of_tokens((640, 480), ONEVISION) + 2

"""Positions of views in their image."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.config.image import ImageSettings
from megatron_llava.vision.merge_shape import grid_of_image
from megatron_llava.vision.tile_positions import view_positions
from megatron_llava.vision.token_layout import number_of_views

SETTINGS = ImageSettings(
    tile_size=28,
    patch_size=14,
    image_aspect_ratio="anyres_max_4",
    grid_pinpoints=((28, 28), (56, 28), (28, 84), (84, 56)),
    mm_patch_merge_type="spatial_unpad",
    unpad_round="llava",
    resize_mode="squash",
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
    tile_position_embedding=True,
)


def test_the_largest_grids_say_how_many_places_there_are():
    assert SETTINGS.position_grid == (3, 3)
    assert replace(SETTINGS, tile_position_embedding=False).position_grid == (0, 0)


@pytest.mark.parametrize(
    ("size", "positions"),
    [
        ((28, 28), [-1, 0]),
        ((56, 28), [-1, 0, 1]),
        ((28, 84), [-1, 0, 3, 6]),
        ((84, 56), [-1, 0, 1, 2, 3, 4, 5]),
    ],
)
def test_a_place_is_its_row_and_column(size, positions):
    assert view_positions(size, SETTINGS, single_view=False) == positions
    without_base = replace(SETTINGS, image_aspect_ratio="nobase")
    assert view_positions(size, without_base, single_view=False) == positions[1:]
    assert view_positions(size, SETTINGS, single_view=True) == [-1]


@pytest.mark.proves("A18")
@given(st.tuples(st.integers(1, 200), st.integers(1, 200)))
def test_each_view_has_one_and_no_two_tiles_share_it(size):
    positions = view_positions(size, SETTINGS, single_view=False)
    assert len(positions) == number_of_views(size, SETTINGS)
    columns, rows = grid_of_image(size, SETTINGS)
    tiles = positions[1:]
    assert len(set(tiles)) == columns * rows
    assert {divmod(p, 3) for p in tiles} == {(i, j) for i in range(rows) for j in range(columns)}


def test_one_view_has_no_places():
    with pytest.raises(ValueError, match="--tile-position-embedding needs tiles, which .* square"):
        replace(SETTINGS, image_aspect_ratio="square", grid_pinpoints=())

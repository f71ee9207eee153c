"""Notations of the pinpoint list and the choice of a canvas."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.vision.anyres import (
    grids_of_max_patches,
    parse_grid_pinpoints,
    select_best_resolution,
    select_grid,
)

FIVE = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


@pytest.mark.proves("A3")
@pytest.mark.parametrize(
    "notation",
    [
        "[(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]",
        " [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]\n",
        [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        FIVE,
    ],
)
def test_list_notations_agree(notation: Any) -> None:
    assert parse_grid_pinpoints(notation, 336) == FIVE


SEVEN = [(2, 2), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (4, 1)]


@pytest.mark.proves("A3")
@pytest.mark.parametrize(
    ("notation", "tiles"),
    [
        # The three published cards: January, May and June 2024.
        ("336 x [(2,2), (1,2), (2,1), (1,3), (3,1), (1,4), (4,1)]", SEVEN),
        ("336\u00d7(2x2;1x2;2x1;1x3;3x1)", SEVEN[:5]),
        (
            "336 \u00d7 {2\u00d72, 1\u00d7{2,3}, {2,3}\u00d71}",
            [(2, 2), (1, 2), (1, 3), (2, 1), (3, 1)],
        ),
        ("336x{2x{1,2}}", [(2, 1), (2, 2)]),
        ("336x({1,2}x{3,4})", [(1, 3), (1, 4), (2, 3), (2, 4)]),
    ],
)
def test_products_of_the_cards(notation: str, tiles: list[tuple[int, int]]) -> None:
    listed = [[336 * columns, 336 * rows] for columns, rows in tiles]
    for order in ("wh", "hw"):
        assert parse_grid_pinpoints(notation, 336, order) == parse_grid_pinpoints(
            listed, 336, order
        )


def test_the_cards_of_may_and_june_have_the_grids_of_the_five_list() -> None:
    for notation in ("336x(2x2;1x2;2x1;1x3;3x1)", "336x{2x2, 1x{2,3}, {2,3}x1}"):
        assert set(parse_grid_pinpoints(notation, 336)) == set(FIVE)


def test_hw_order_flips_every_pair() -> None:
    assert parse_grid_pinpoints(FIVE, 336, "hw") == tuple((w, h) for h, w in FIVE)


@pytest.mark.parametrize("text", ["(1x1),...,(2x3)", "( 1x1 ), ... , (2x3)", "(1x1),\u2026,(2x3)"])
def test_range_counts_tiles_first_number_outer(text: str) -> None:
    expected = ((56, 56), (56, 112), (56, 168), (112, 56), (112, 112), (112, 168))
    assert parse_grid_pinpoints(text, 56) == expected
    assert parse_grid_pinpoints(text, 56, "hw") == tuple((w, h) for h, w in expected)


@pytest.mark.proves("A4")
def test_range_of_one_and_the_published_range() -> None:
    assert parse_grid_pinpoints("(2x3)", 384) == ((768, 1152),)
    sizes = parse_grid_pinpoints("(1x1),...,(6x6)", 384)
    assert sizes == tuple((384 * w, 384 * h) for w in range(1, 7) for h in range(1, 7))
    assert len(sizes) == 36 and sizes[-1] == (2304, 2304)


@pytest.mark.parametrize(
    ("notation", "said"),
    [
        ("(1x1),(1x2),(2x2)", "expected"),  # grids one by one: a range would add (2x1)
        ("(1x1),...", "expected"),
        ("1x1,...,6x6", "expected"),
        ("384x{2x2}", "tiles of 384 pixels, the views of the vision tower have 336"),
        ("336x{2x2,}", "expected"),
        ("336x{2x2 3x3}", "expected"),
        ("336x{}", "expected"),
        ("336x{2x{1,}}", "expected"),
        ("336x{0x2}", r"\(0, 672\) is not a positive multiple"),
        ("(2x2),...,(1x3)", r"from \(2, 2\) to \(1, 3\)"),
        ("(0x1),...,(2x2)", r"from \(0, 1\)"),
        ("[[336, 672], ", "expected"),
        ("open('a')", "expected"),
        ("", "expected"),
        ("[]", "expected"),
        ("336", "expected"),
        ([336, 672], "336 is no pair"),
        ([[336, 672, 336]], "no pair"),
        ([["336", "672"]], "no pair"),
        ([[336.0, 672]], "no pair"),
        ([[True, 336]], "no pair"),
        ([[336, 700]], r"\(336, 700\) .* tile size 336"),
        ([[336, -336]], r"\(336, -336\)"),
    ],
)
def test_bad_notations_say_what_was_expected(notation: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        parse_grid_pinpoints(notation, 336)
    assert "--image-grid-pinpoints" in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="--pinpoint-order xy"):
        parse_grid_pinpoints(FIVE, 336, "xy")


@pytest.mark.parametrize(
    ("image_size", "canvas"),
    [
        ((800, 600), (672, 672)),
        ((1920, 1080), (672, 672)),
        ((2000, 500), (1008, 336)),
        ((300, 1500), (336, 1008)),
        ((336, 336), (336, 672)),  # a full tie of the two smallest canvases: the first listed
        ((1, 10000), (336, 672)),  # keeps no pixel anywhere: the smallest, first listed
    ],
)
def test_choice_from_the_five_list(image_size: tuple[int, int], canvas: tuple[int, int]) -> None:
    assert select_best_resolution(image_size, FIVE) == canvas


@pytest.mark.proves("A1")
def test_full_tie_goes_to_the_first_listed() -> None:
    assert select_best_resolution((100, 100), ((336, 672), (672, 336))) == (336, 672)
    assert select_best_resolution((100, 100), ((672, 336), (336, 672))) == (672, 336)
    # The published list read as transformers reads it: its first pair is the wide canvas.
    assert select_best_resolution((100, 100), parse_grid_pinpoints(FIVE, 336, "hw")) == (672, 336)


def test_a_strip_that_no_canvas_keeps_gets_the_smallest() -> None:
    sizes = ((112, 112), (56, 56), (56, 112))
    assert select_best_resolution((1, 100_000), sizes) == (56, 56)


@pytest.mark.proves("A1", "A3")
@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12),
)
def test_choice_keeps_most_pixels_then_wastes_fewest(
    width: int, height: int, grids: list[tuple[int, int]]
) -> None:
    sizes = tuple((56 * a, 56 * b) for a, b in grids)

    def rank(size: tuple[int, int]) -> tuple[int, int]:
        scale = min(size[0] / width, size[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return -kept, size[0] * size[1] - kept

    # min() keeps the first of equals, as the rule asks.
    assert select_best_resolution((width, height), sizes) == min(sizes, key=rank)


def of_patches(size: tuple[int, int], most: int, **how: Any) -> tuple[int, int]:
    """(rows, columns), as that search gives them."""
    settings = {"weight": 0.1, "by_share": True} | how
    width, height = select_grid(
        size, parse_grid_pinpoints(f"max_patches={most}", 336), 336, **settings
    )
    return height // 336, width // 336


@pytest.mark.proves("A12")
@pytest.mark.parametrize(
    ("height", "width", "most", "grid"),
    [
        *[(1080, 1920, 5, (1, 2)), (1080, 1920, 6, (2, 3)), (1080, 1920, 9, (2, 4))],
        *[(1920, 1080, 5, (2, 1)), (336, 336, 5, (2, 2)), (500, 400, 1, (1, 1))],
    ],
)
def test_grid_of_at_most_so_many_patches(height, width, most, grid) -> None:
    assert of_patches((width, height), most) == grid


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 30), st.sampled_from([0.1, 0.7]))
def test_no_grid_scores_less(width: int, height: int, most: int, weight: float) -> None:
    grids = [(n, m) for n in range(1, most + 1) for m in range(1, most + 1)]
    grids = [(n, m) for n, m in grids if n * m <= most and n * n <= most]
    assert sorted(grids) == sorted((n, m) for m, n in grids_of_max_patches(most))
    for by_share in (True, False):
        scores = {}
        for n, m in grids:
            waste = (most - n * m) / most if by_share else most - n * m
            scores[n, m] = abs(m / n - width / height) + weight * waste
        found = of_patches((width, height), most, weight=weight, by_share=by_share)
        assert scores[found] == pytest.approx(min(scores.values()))


@pytest.mark.proves("A13")
def test_weight_and_form_of_the_waste() -> None:
    size = (1920, 1080)
    assert of_patches(size, 6) == (2, 3)
    # Without it the nearest ratio wins, though it has four patches of nine.
    assert of_patches((500, 500), 9, weight=0.0) == (1, 1)
    assert of_patches((500, 500), 9, weight=0.1) == (3, 3)
    # One by one, the patch that 2 x 2 has less than 1 x 5 counts as much as four ratios.
    assert of_patches((500, 400), 5, weight=4.0, by_share=True) == (2, 2)
    assert of_patches((500, 400), 5, weight=4.0, by_share=False) == (1, 5)

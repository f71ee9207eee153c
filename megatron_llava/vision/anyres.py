"""Which canvas an image gets: the list of allowed sizes and the choice among them."""

import ast
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from megatron_llava.config.image import ImageSettings
from megatron_llava.vision.grid_notation import read_product

Size = tuple[int, int]

_RANGE = re.compile(r"\((\d+)x(\d+)\)(?:,(?:\.\.\.|\u2026),\((\d+)x(\d+)\))?")
_MAX_PATCHES = re.compile(r"max_patches=([1-9]\d*)")
_EXPECTED = (
    "expected '(1x1),...,(6x6)' in tiles, a list of [width, height] in pixels, "
    "'336x{2x2,1x{2,3}}', a tile in pixels and grids of it, or 'max_patches=6'"
)


def parse_grid_pinpoints(
    pinpoints: str | Sequence[Any], tile_size: int, pinpoint_order: str = "wh"
) -> tuple[Size, ...]:
    """Read a list of allowed canvas sizes in any of the notations in use.

    Args:
        pinpoints: a range "(1x1),...,(6x6)" (inclusive, counted in tiles, first number outer);
            a Python or JSON literal "[[336, 672], [672, 336]]"; such a list itself (pixels); a
            tile and grids of it, "336x{2x2,1x{2,3}}", as `grid_notation` reads them; or
            "max_patches=6", the grids that `grids_of_max_patches` lists.
        tile_size: side of a tile in pixels; every size must be a multiple of it.
        pinpoint_order: meaning of each pair as written: 'wh' (LLaVA) or 'hw' (the same JSON list as
            transformers reads it). It decides ties only where the list is a symmetric set.

    Returns:
        (width, height) pairs in pixels, in the order of the list: the first wins a tie.

    Raises:
        ValueError: unreadable notation, an empty list, or a size that is no multiple of the tile.
    """
    if pinpoint_order not in ("wh", "hw"):
        raise ValueError(f"--pinpoint-order {pinpoint_order}: expected wh or hw")
    if isinstance(pinpoints, str) and (most := _MAX_PATCHES.fullmatch(pinpoints.strip())):
        grids = grids_of_max_patches(int(most[1]))
        return tuple((columns * tile_size, rows * tile_size) for columns, rows in grids)
    if isinstance(pinpoints, str) and re.search("[x\N{MULTIPLICATION SIGN}]", pinpoints):
        grids = _expand_product(pinpoints, tile_size) or _expand_range(pinpoints)
        pairs = [(a * tile_size, b * tile_size) for a, b in grids]
    else:
        pairs = _read_pairs(pinpoints)
    for pair in pairs:
        if min(pair) <= 0 or pair[0] % tile_size or pair[1] % tile_size:
            raise ValueError(
                f"--image-grid-pinpoints: {pair} is not a positive multiple of the tile size "
                f"{tile_size} in both directions"
            )
    return tuple(pairs if pinpoint_order == "wh" else [(w, h) for h, w in pairs])


def grids_of_max_patches(most: int) -> list[Size]:
    """(columns, rows) of the grids of up to so many tiles, flat ones first.

    Rows go to the root of the number, as in the search that this list is for (seed 004,
    `select_grid`): an upright image of 1080 x 1920 has grids of two rows, none of three or more,
    until nine patches are allowed.
    """
    return [
        (columns, rows)
        for rows in range(1, math.isqrt(most) + 1)
        for columns in range(1, most // rows + 1)
    ]


def _expand_product(text: str, tile_size: int) -> list[Size] | None:
    """The grids of a tile and its grids, None where the text is no such thing."""
    found = read_product(text)
    if found is not None and found[0] != tile_size:
        raise ValueError(
            f"--image-grid-pinpoints {text!r}: counts tiles of {found[0]} pixels, the views of "
            f"the vision tower have {tile_size}"
        )
    return None if found is None else found[1]


def _expand_range(text: str) -> list[Size]:
    """All grids (in tiles) of a range "(AxB),...,(CxD)"; "(AxB)" alone is a range of one."""
    match = _RANGE.fullmatch("".join(text.split()))
    if match is None:
        # Grids listed one by one would be read as a range from the first to the last: refuse them.
        raise ValueError(f"--image-grid-pinpoints {text!r}: {_EXPECTED}")
    first = int(match.group(1)), int(match.group(2))
    last = (int(match.group(3)), int(match.group(4))) if match.group(3) else first
    if min(first) < 1 or last[0] < first[0] or last[1] < first[1]:
        raise ValueError(
            f"--image-grid-pinpoints {text!r}: the range goes from {first} to {last}; "
            "both numbers must start at 1 or more and must not decrease"
        )
    return [(i, j) for i in range(first[0], last[0] + 1) for j in range(first[1], last[1] + 1)]


def _read_pairs(pinpoints: str | Sequence[Any]) -> list[Size]:
    values: Any = pinpoints
    if isinstance(pinpoints, str):
        try:
            values = ast.literal_eval(pinpoints.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise ValueError(f"--image-grid-pinpoints {pinpoints!r}: {_EXPECTED}") from None
    if not isinstance(values, (list, tuple)) or not values:
        raise ValueError(f"--image-grid-pinpoints {pinpoints!r}: {_EXPECTED}")
    for pair in values:
        # A bool is an int to isinstance, so the types are compared exactly.
        if not isinstance(pair, (list, tuple)) or [type(side) for side in pair] != [int, int]:
            raise ValueError(
                f"--image-grid-pinpoints: {pair!r} is no pair of integers; {_EXPECTED}"
            )
    return [(pair[0], pair[1]) for pair in values]


@lru_cache(maxsize=1 << 16)
def select_best_resolution(image_size: Size, pinpoints: tuple[Size, ...]) -> Size:
    """The canvas that keeps the most pixels of an image and, among equals, wastes the fewest.

    For each (w, h): s = min(w/W, h/H), kept = min(int(W*s) * int(H*s), W*H), waste = w*h - kept.
    The first of the list wins a full tie (LLaVA-NeXT, mm_utils.select_best_resolution). A strip so
    thin that no canvas keeps a pixel gets the smallest canvas.

    Args:
        image_size: (W, H) in pixels, both at least 1.
        pinpoints: (w, h) in pixels, at least one.

    Returns:
        (w, h) of the chosen canvas.
    """
    image_width, image_height = image_size
    image_area = image_width * image_height
    best, best_kept, best_waste = pinpoints[0], -1, 0
    for pinpoint in pinpoints:
        width, height = pinpoint
        scale = min(width / image_width, height / image_height)
        kept = min(int(image_width * scale) * int(image_height * scale), image_area)
        waste = width * height - kept
        if kept > best_kept or (kept == best_kept and waste < best_waste):
            best, best_kept, best_waste = pinpoint, kept, waste
    return best


def select_grid(
    image_size: Size, pinpoints: tuple[Size, ...], tile_size: int, weight: float, by_share: bool
) -> Size:
    """The canvas whose aspect ratio is nearest to an image's, a waste of tiles counted in.

    Of canvases of c columns and r rows, the one with the least
    |c / r - W / H| + weight * waste, where waste is N - c * r tiles, N being the most that a canvas
    has, or that number's share of N. The first of the list wins a tie (seed 004, `select_grid`).

    Args:
        image_size: (W, H) in pixels, both at least 1.
        pinpoints: (w, h) in pixels, multiples of `tile_size`, at least one.
        tile_size: side of a tile in pixels.
        weight: lambda, at least 0.
        by_share: whether the waste is a share.

    Returns:
        (w, h) of the chosen canvas.
    """
    ratio = image_size[0] / image_size[1]
    most = max(width * height for width, height in pinpoints) // tile_size**2
    best, best_score = pinpoints[0], math.inf
    for width, height in pinpoints:
        columns, rows = width // tile_size, height // tile_size
        waste = float(most - columns * rows)
        score = abs(columns / rows - ratio) + weight * (waste / most if by_share else waste)
        if score < best_score:
            best, best_score = (width, height), score
    return best


def select_canvas(image_size: Size, settings: ImageSettings) -> Size:
    """(width, height) in pixels of the canvas that an image gets."""
    if settings.grid_choice == "resolution":
        return select_best_resolution(image_size, settings.grid_pinpoints)
    weight, by_share = settings.grid_waste_weight, settings.grid_waste == "share"
    return select_grid(image_size, settings.grid_pinpoints, settings.tile_size, weight, by_share)

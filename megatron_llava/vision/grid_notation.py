"""Grids as products of tiles, the way LLaVA-NeXT's model cards write them.

``336 x [(2,2), (1,2), (2,1)]``, ``336x(2x2;1x2;2x1)`` and ``336 x {2x2, 1x{2,3}, {2,3}x1}`` are the
side of a tile and a list of grids, a grid being two numbers of tiles or sets of them.
"""

from __future__ import annotations

import re
from itertools import product

Size = tuple[int, int]

_PRODUCT = re.compile(r"(\d+)x(?:\[(.*)\]|\((.*)\)|\{(.*)\})")
_SIDE = r"(\d+|\{\d+(?:,\d+)*\})"
_GRID = re.compile(rf"{_SIDE}x{_SIDE}|\((\d+),(\d+)\)")
_SEPARATOR = re.compile(r"[,;]")


def read_product(text: str) -> tuple[int, list[Size]] | None:
    """The side of a tile in pixels and the grids in tiles, first number outer.

    The sign between numbers may also be the one of multiplication; spaces do not matter.

    Returns:
        None for a text in another notation.
    """
    match = _PRODUCT.fullmatch("".join(text.split()).replace("\N{MULTIPLICATION SIGN}", "x"))
    if match is None:
        return None
    listed = match[2] or match[3] or match[4] or ""
    grids: list[Size] = []
    at = 0
    while grid := _GRID.match(listed, at):
        first, second = (grid[1], grid[2]) if grid[1] else (grid[3], grid[4])
        grids += product(_numbers(first), _numbers(second))
        at = grid.end()
        if at == len(listed):
            return int(match[1]), grids
        if not _SEPARATOR.match(listed, at):
            return None
        at += 1
    return None


def _numbers(side: str) -> list[int]:
    return [int(number) for number in side.strip("{}").split(",")]

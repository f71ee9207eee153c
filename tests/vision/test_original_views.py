"""Pixels of the views against LLaVA-NeXT's rules written down with Pillow, on random images."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from published_settings import NEXT, ONEVISION

from megatron_llava.vision.anyres import parse_grid_pinpoints
from megatron_llava.vision.tiles import image_views

SIDE = 70
SMALL = replace(
    ONEVISION, tile_size=SIDE, grid_pinpoints=parse_grid_pinpoints("(1x1),...,(6x6)", SIDE)
)
FIVE = tuple((w // 336 * SIDE, h // 336 * SIDE) for w, h in NEXT.grid_pinpoints)
RANDOM = np.random.default_rng(3).integers(20, 900, (8, 2)).tolist()


def best(size: tuple[int, int], canvases: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The canvas that keeps most of the image, then the one that wastes least, then the first."""
    width, height = size
    chosen, most, least = canvases[0], 0, math.inf
    for canvas in canvases:
        scale = min(canvas[0] / width, canvas[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        waste = canvas[0] * canvas[1] - kept
        if kept > most or (kept == most and waste < least):
            chosen, most, least = canvas, kept, waste
    return chosen


def original_views(image: Image.Image, canvases: tuple[tuple[int, int], ...]) -> list[np.ndarray]:
    """The whole image squashed; then the scaled image centred on black, cut row by row."""
    width, height = best(image.size, canvases)
    by_width, by_height = width / image.width, height / image.height
    if by_width < by_height:
        scaled = width, min(math.ceil(image.height * by_width), height)
    else:
        scaled = min(math.ceil(image.width * by_height), width), height
    canvas = Image.new("RGB", (width, height), (0, 0, 0))
    canvas.paste(image.resize(scaled), ((width - scaled[0]) // 2, (height - scaled[1]) // 2))
    views = [image.resize((SIDE, SIDE))]
    for top in range(0, height, SIDE):
        views += [
            canvas.crop((left, top, left + SIDE, top + SIDE)) for left in range(0, width, SIDE)
        ]
    return [np.asarray(view).transpose(2, 0, 1) for view in views]


@pytest.mark.proves("A1")
@pytest.mark.parametrize("order", ["wh", "hw"])
@pytest.mark.parametrize("size", [*map(tuple, RANDOM), (SIDE, SIDE), (30, 30), (500, 41)], ids=str)
def test_views_are_those_of_the_rules(size, order):
    """Also where canvases tie, with the list read as (width, height) and as (height, width)."""
    pixels = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    for listed in (FIVE, SMALL.grid_pinpoints):
        read = parse_grid_pinpoints(listed, SIDE, order)
        expected = original_views(image, read if order == "wh" else tuple(p[::-1] for p in listed))
        found = image_views(image, replace(SMALL, grid_pinpoints=read))
        np.testing.assert_array_equal(found, np.stack(expected))

"""Tiles to patches equals normalising the tiles and convolving them."""

import numpy as np
import pytest
import torch
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from megatron_llava.ops.operators import compiled_for
from megatron_llava.ops.tiles_to_patches import (
    pixel_table,
    tiles_to_patches,
    tiles_to_patches_torch,
)
from megatron_llava.vision.tiles import normalize_tiles

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def compiled(tiles, table, patch):
    if not compiled_for(tiles):
        pytest.skip("the package was installed without a compiler")
    return tiles_to_patches(tiles, table, patch)


both = pytest.mark.parametrize("function", [compiled, tiles_to_patches_torch])
sizes = pytest.mark.parametrize(("side", "patch"), [(28, 14), (27, 9), (31, 7), (5, 5), (6, 1)])


def random_tiles(views, side):
    generator = torch.Generator().manual_seed(side)
    return torch.randint(0, 256, (views, 3, side, side), generator=generator, dtype=torch.uint8)


@both
@sizes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_patches_are_the_normalised_pixels_bit_for_bit(function, side, patch, dtype):
    tiles = random_tiles(3, side)
    found = function(tiles, pixel_table(MEAN, STD, dtype), patch)
    pixels = normalize_tiles(tiles, MEAN, STD, dtype)
    windows = torch.nn.functional.unfold(pixels.double(), patch, stride=patch).transpose(1, 2)
    assert found.dtype == dtype and torch.equal(found.double(), windows)


@both
@sizes
def test_a_matmul_of_patches_is_the_convolution(function, side, patch):
    conv = torch.nn.Conv2d(3, 8, patch, stride=patch, dtype=torch.float64)
    tiles = random_tiles(2, side)
    rows = function(tiles, pixel_table(MEAN, STD, torch.float64), patch)
    found = torch.nn.functional.linear(rows, conv.weight.flatten(1), conv.bias)
    expected = conv(normalize_tiles(tiles, MEAN, STD, torch.float64)).flatten(2).transpose(1, 2)
    assert found.shape == expected.shape and (found - expected).abs().max() < 1e-12


@both
def test_tiles_need_not_be_contiguous(function):
    tiles = random_tiles(2, 12)
    table = pixel_table(MEAN, STD, torch.float32)
    flipped = tiles.transpose(2, 3)
    assert torch.equal(function(flipped, table, 4), function(flipped.contiguous(), table, 4))


@both
@pytest.mark.parametrize(
    ("processor_class", "mean", "std"),
    [(CLIPImageProcessorPil, MEAN, STD), (SiglipImageProcessorPil, (0.5,) * 3, (0.5,) * 3)],
)
def test_every_pixel_is_the_image_processors_within_one_unit(function, processor_class, mean, std):
    """All 256 values of each channel, rescaled and normalised by transformers itself."""
    values = torch.arange(256, dtype=torch.uint8).view(16, 16).repeat(3, 1, 1)
    processor = processor_class()
    pixels = processor.normalize(processor.rescale(values.numpy(), 1 / 255), mean, std)
    pixels = torch.from_numpy(pixels.astype(np.float32))[None]
    expected = torch.nn.functional.unfold(pixels, 4, stride=4).transpose(1, 2)
    found = function(values[None], pixel_table(mean, std, torch.float32), 4)
    below, above = (torch.nextafter(expected, torch.full((), end)) for end in (-9.0, 9.0))
    assert ((found >= below) & (found <= above)).all()

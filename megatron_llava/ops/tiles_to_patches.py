"""Tiles of pixels to the rows that the patch embedding multiplies, in one pass over memory.

Shape suffixes: V views, S tile side in pixels, P patch side in pixels, T patches per view, C
channels (3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_llava.ops.operators import compiled_for
from megatron_llava.vision.tiles import normalize_tiles


def pixel_table(mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
    """[3, 256], the normalised value of each byte in each channel, as ``normalize_tiles`` has it.

    Args:
        mean: three channel means in [0, 1].
        std: three channel standard deviations.
        dtype: type of the result.
    """
    values = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    return normalize_tiles(values, mean, std, dtype).reshape(3, 256)


def tiles_to_patches(tiles_VCSS: torch.Tensor, table: torch.Tensor, patch: int) -> torch.Tensor:
    """Normalise tiles and cut them into patches, in raster order.

    ``F.linear`` of the result and ``weight.flatten(1)`` is the convolution of the normalised tiles
    with a weight [D, 3, P, P] at stride P. As there, pixels beyond the last whole patch are left
    out.

    Args:
        tiles_VCSS: uint8 [V, 3, S, S].
        table: ``pixel_table`` on the tiles' device.
        patch: P, at most S.

    Returns:
        [V, T, 3 * P * P] in the table's dtype, T = (S // P)**2.
    """
    if compiled_for(tiles_VCSS):
        return torch.ops.megatron_llava.tiles_to_patches(tiles_VCSS.contiguous(), table, patch)
    return tiles_to_patches_torch(tiles_VCSS, table, patch)


def tiles_to_patches_torch(
    tiles_VCSS: torch.Tensor, table: torch.Tensor, patch: int
) -> torch.Tensor:
    """The same in plain torch."""
    views, channels, side, _ = tiles_VCSS.shape
    grid = side // patch
    whole = tiles_VCSS[:, :, : grid * patch, : grid * patch]
    cut = whole.reshape(views, channels, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
    rows = cut.reshape(views, grid * grid, channels, patch * patch)
    first = torch.arange(0, channels * 256, 256, dtype=torch.int32, device=rows.device)
    return table.flatten()[rows + first[:, None]].flatten(2)

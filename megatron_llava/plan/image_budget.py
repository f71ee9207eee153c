"""The most tokens of an image, the way LLaVA's documents count them: (views of tiles + 1) x T."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_llava.config.image import ImageSettings


@dataclass(frozen=True, kw_only=True)
class ImageBudget:
    """Of the largest image; newlines are not counted."""

    tiles: int
    """Views of tiles that are merged in full, or what a cap leaves of them."""

    base: int
    """1 with a view of the whole image, else 0."""

    tokens_per_view: int

    @property
    def tokens(self) -> int:
        return (self.tiles + self.base) * self.tokens_per_view


def image_budget(settings: ImageSettings) -> ImageBudget:
    """The nominal limit: `anyres_max_N` keeps up to 21 % more tokens of tiles than N views have."""
    each = settings.merged_side**2
    if not settings.uses_grid:
        return ImageBudget(tiles=0, base=1, tokens_per_view=each)
    side = settings.tile_size
    tiles = max(width * height for width, height in settings.grid_pinpoints) // side**2
    merges_base = settings.has_base_view and "nobase" not in settings.mm_patch_merge_type
    threshold = settings.token_threshold
    cap = settings.max_merged_views if threshold is None else threshold // each - 1
    return ImageBudget(
        tiles=tiles if cap is None else min(tiles, cap),
        base=int(merges_base),
        tokens_per_view=each,
    )

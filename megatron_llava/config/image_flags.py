"""The flags of images: how they become tiles and tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from megatron_llava.config.fields import flag


def _pinpoints_text(value: Any) -> Any:
    """A YAML list of [width, height] pairs as the text that the grid parser reads."""
    return str([list(pair) for pair in value]) if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How an image becomes tiles and tokens; a flag wins over the checkpoint's value."""

    image_aspect_ratio: str | None = flag(
        None,
        "square, pad, anyres, anyres_max_N, anyres_thresholded_N or nobase",
        from_checkpoint="overridable",
    )
    image_grid_pinpoints: str | None = flag(
        None,
        "Grids: a range (1x1),...,(6x6), tiles 336x{2x2,1x{2,3}}, max_patches=6, or a list of "
        "sizes in pixels",
        from_checkpoint="overridable",
        parse=_pinpoints_text,
    )
    pad_aspect_ratio: float = flag(
        1.0,
        "Width over height that a padded view is padded to, before it is scaled to the square that "
        "the tower sees",
        from_checkpoint="overridable",
    )
    pad_tolerance: float = flag(
        0.0,
        "An image is scaled without padding where its aspect ratio differs from that by less",
        from_checkpoint="overridable",
    )
    grid_choice: Literal["resolution", "aspect_ratio"] = flag(
        "resolution",
        "Which grid an image gets: the one that keeps most of its pixels (LLaVA-NeXT), or the one "
        "of the nearest aspect ratio that wastes few tiles",
        from_checkpoint="overridable",
    )
    grid_waste_weight: float = flag(
        0.1,
        "With --grid-choice aspect_ratio: what the tiles count that a grid has less than the "
        "largest, against a difference of aspect ratios (width / height)",
        from_checkpoint="overridable",
    )
    grid_waste: Literal["share", "tiles"] = flag(
        "share",
        "Whether those tiles count as a share of the largest grid's, or one by one",
        from_checkpoint="overridable",
    )
    mm_patch_merge_type: str | None = flag(
        None,
        "How tiles become tokens: flat, spatial or spatial_unpad, the latter two also with "
        "_maxpool2x2, and each with _nobase",
        from_checkpoint="overridable",
    )
    pinpoint_order: Literal["wh", "hw"] = flag(
        "wh",
        "Whether a pair in --image-grid-pinpoints is (width, height) or (height, width)",
        from_checkpoint="overridable",
    )
    unpad_round: Literal["llava", "hf"] = flag(
        "llava",
        "Rounding of the unpadded size: the original code's or transformers'",
        from_checkpoint="overridable",
    )
    multi_image_views: Literal["one_padded", "as_single"] = flag(
        "one_padded",
        "Each image of a sample that has several: one padded view, as the original code trains, or "
        "what --image-aspect-ratio gives an image alone, as transformers does for LlavaNext and "
        "Llava",
        from_checkpoint="overridable",
    )
    image_newline: bool = flag(
        True,
        "A learned row for the ends of unpadded rows; LLaVA-1.5 has none",
        from_checkpoint="overridable",
    )
    image_separator: bool = flag(
        False,
        "A learned row before each image of a sample but the first",
        from_checkpoint="overridable",
    )
    image_start_end: bool = flag(
        False,
        "Learned rows before and behind the tokens of each image",
        from_checkpoint="overridable",
    )
    tile_position_embedding: bool = flag(
        False,
        "A learned row, zero at first, that is added to the features of a tile by its place in the "
        "grid",
        from_checkpoint="overridable",
    )
    image_pool_stride: int = flag(
        1,
        "Features per token along each side of an image's view, pooled as --mm-spatial-pool-mode "
        "says; 1 does not pool",
        from_checkpoint="overridable",
    )
    mm_spatial_pool_mode: Literal["bilinear", "average", "max"] = flag(
        "bilinear",
        "How the features of a video's frame are pooled: bilinear rounds up to 196 tokens of 729, "
        "average and max down to 169",
        from_checkpoint="overridable",
    )
    mm_spatial_pool_stride: int = flag(
        2,
        "Features per token along each side of a frame; 1 does not pool",
        from_checkpoint="overridable",
    )
    mm_newline_position: Literal["grid", "frame", "one_token", "no_token"] = flag(
        "one_token",
        "Where image_newline stands in a video: after each row of a frame, after each frame, at "
        "its end (LLaVA-OneVision, transformers), or nowhere",
        from_checkpoint="overridable",
    )
    image_mean: tuple[float, ...] | None = flag(
        None,
        "Mean of the red, green and blue channel, of 1",
        from_checkpoint="overridable",
        default_text="from the checkpoint, else the vision tower's usual one",
    )
    image_std: tuple[float, ...] | None = flag(
        None,
        "Standard deviation of the red, green and blue channel, of 1",
        from_checkpoint="overridable",
        default_text="from the checkpoint, else the vision tower's usual one",
    )
    image_resize_mode: Literal["shortest_edge_crop", "squash"] | None = flag(
        None,
        "How --image-aspect-ratio square makes a view: scale and crop, or squash",
        from_checkpoint="overridable",
        default_text="from the checkpoint, else squash for siglip and crop for other towers",
    )

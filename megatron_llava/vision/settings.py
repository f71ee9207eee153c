"""The run's image settings in resolved form."""

from __future__ import annotations

from typing import cast

from megatron_llava.config.image import ImageSettings
from megatron_llava.config.run import RunConfig
from megatron_llava.config.towers import Channels
from megatron_llava.config.video import video_settings
from megatron_llava.vision.anyres import parse_grid_pinpoints


def image_settings(config: RunConfig) -> ImageSettings:
    """What decides the views, pixels and tokens of the run's images.

    Raises:
        ValueError: one line naming the flag.
    """
    image, vision = config.image, config.vision
    assert vision.vision_image_size is not None and vision.vision_patch_size is not None
    assert image.image_aspect_ratio is not None and image.mm_patch_merge_type is not None
    mean, std = vision.kind.image_mean_std
    pinpoints: tuple[tuple[int, int], ...] = ()
    if image.image_grid_pinpoints is not None:
        pinpoints = parse_grid_pinpoints(
            image.image_grid_pinpoints, vision.vision_image_size, image.pinpoint_order
        )
    settings = ImageSettings(
        tile_size=vision.vision_image_size,
        patch_size=vision.vision_patch_size,
        image_aspect_ratio=image.image_aspect_ratio,
        grid_pinpoints=pinpoints,
        pad_aspect_ratio=image.pad_aspect_ratio,
        pad_tolerance=image.pad_tolerance,
        grid_choice=image.grid_choice,
        grid_waste_weight=image.grid_waste_weight,
        grid_waste=image.grid_waste,
        mm_patch_merge_type=image.mm_patch_merge_type,
        unpad_round=image.unpad_round,
        resize_mode=image.image_resize_mode or vision.kind.image_resize_mode,
        image_mean=cast(Channels, image.image_mean or mean),
        image_std=cast(Channels, image.image_std or std),
        multi_image_views=image.multi_image_views,
        image_newline=image.image_newline,
        image_separator=image.image_separator,
        image_start_end=image.image_start_end,
        tile_position_embedding=image.tile_position_embedding,
        image_pool_stride=image.image_pool_stride,
        mm_spatial_pool_mode=image.mm_spatial_pool_mode,
        mm_spatial_pool_stride=image.mm_spatial_pool_stride,
        mm_newline_position=image.mm_newline_position,
    )
    video_settings(settings)
    return settings


def nobase_remark(settings: ImageSettings) -> str | None:
    """What ``nobase`` means here, for those who know the word from a run of the original code."""
    if settings.image_aspect_ratio != "nobase":
        return None
    return (
        "--image-aspect-ratio nobase: grids without a view of the whole image; the original code "
        "takes the word for one square view, which is --image-aspect-ratio square here"
    )

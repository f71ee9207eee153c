"""ImageSettings: what it derives and what it refuses."""

from typing import Any

import pytest

from megatron_llava.config.image import ImageSettings

VALID: dict[str, Any] = {
    "tile_size": 336,
    "patch_size": 14,
    "image_aspect_ratio": "anyres",
    "grid_pinpoints": ((336, 672), (672, 336)),
    "mm_patch_merge_type": "spatial_unpad",
    "unpad_round": "hf",
    "resize_mode": "shortest_edge_crop",
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}


def make(**changes: Any) -> ImageSettings:
    return ImageSettings(**{**VALID, **changes})


def test_derived_numbers() -> None:
    settings = make()
    assert (settings.patches_per_side, settings.tokens_per_view) == (24, 576)
    assert settings.uses_grid and settings.has_base_view and settings.max_merged_views is None
    assert make(image_aspect_ratio="anyres_max_9").max_merged_views == 9
    assert make(image_aspect_ratio="anyres_max_9").token_threshold is None
    thresholded = make(image_aspect_ratio="anyres_thresholded_4")
    assert (thresholded.token_threshold, thresholded.max_merged_views) == (5 * 576, None)
    assert thresholded.uses_grid and thresholded.has_base_view
    assert not make(image_aspect_ratio="nobase").has_base_view
    assert not make(image_aspect_ratio="pad", grid_pinpoints=()).uses_grid
    # The patches need not fill the tile: SigLIP at 384 sees 27 * 14 = 378 pixels.
    assert make(tile_size=384, grid_pinpoints=((384, 768),)).patches_per_side == 27


def test_equal_settings_hash_alike() -> None:
    assert make() == make() and hash(make()) == hash(make())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"image_aspect_ratio": "anyres_max_"}, "--image-aspect-ratio anyres_max_:"),
        ({"image_aspect_ratio": "anyres_max_0"}, "--image-aspect-ratio anyres_max_0:"),
        ({"image_aspect_ratio": "anyres_thresholded_0"}, "anyres_thresholded_0:"),
        ({"image_aspect_ratio": "highres"}, "--image-aspect-ratio highres:"),
        ({"mm_patch_merge_type": "spatial_nobas"}, "--mm-patch-merge-type spatial_nobas:"),
        (
            {"mm_patch_merge_type": "spatial_maxpool2x2", "image_aspect_ratio": "anyres_max_4"},
            "--mm-patch-merge-type spatial_maxpool2x2 with --image-aspect-ratio anyres_max_4: both",
        ),
        (
            {"mm_patch_merge_type": "spatial_maxpool2x2", "image_pool_stride": 2},
            "spatial_maxpool2x2 with --image-pool-stride 2: both resize",
        ),
        (
            {
                "mm_spatial_pool_mode": "max",
                "image_pool_stride": 2,
                "tile_position_embedding": True,
            },
            "is added to features, of which --image-pool-stride 2 .* takes the largest: drop one",
        ),
        (
            {"mm_patch_merge_type": "spatial_maxpool2x2", "tile_position_embedding": True},
            "of which --mm-patch-merge-type spatial_maxpool2x2 takes the largest: drop one",
        ),
        ({"unpad_round": "floor"}, "--unpad-round floor:"),
        ({"resize_mode": "stretch"}, "resize_mode stretch:"),
        ({"grid_pinpoints": ()}, "set --image-grid-pinpoints"),
        ({"image_aspect_ratio": "pad"}, "--image-grid-pinpoints has 2 sizes"),
        ({"grid_pinpoints": ((336, 384),)}, r"\(336, 384\) .* tile size 336"),
        ({"grid_pinpoints": ((336, 0),)}, r"\(336, 0\)"),
        ({"pad_aspect_ratio": 0.0}, "--pad-aspect-ratio 0.0: expected a number above 0"),
        ({"pad_tolerance": -0.1}, "--pad-tolerance -0.1: expected"),
        (
            {"pad_tolerance": 0.1, "multi_image_views": "as_single"},
            "--pad-tolerance 0.1 are of padded views, which --image-aspect-ratio anyres",
        ),
        ({"patch_size": 337}, "tile_size 336 and patch_size 337"),
        ({"patch_size": 0}, "patch_size 0"),
        ({"image_mean": (0.5, 0.5)}, "image_mean"),
        ({"image_mean": (122.0, 116.0, 104.0)}, "image_mean"),
        ({"image_std": (0.5, 0.0, 0.5)}, "image_std"),
        ({"image_std": (0.5, float("nan"), 0.5)}, "image_std"),
    ],
)
def test_refusals_name_the_flag_in_one_line(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        make(**changes)
    assert "\n" not in str(caught.value)

"""VideoSettings: what it derives and what it refuses."""

from typing import Any

import pytest

from megatron_llava.config.video import VideoSettings

VALID: dict[str, Any] = {
    "tile_size": 384,
    "patch_size": 14,
    "mm_patch_merge_type": "spatial_unpad",
}


def make(**changes: Any) -> VideoSettings:
    return VideoSettings(**{**VALID, **changes})


def test_derived_numbers() -> None:
    settings = make()
    assert (settings.patches_per_side, settings.tokens_per_view) == (27, 729)
    assert settings.pooled_side == 14
    assert make(mm_spatial_pool_mode="average").pooled_side == 13
    assert make(mm_spatial_pool_stride=4).pooled_side == 7
    assert make(mm_spatial_pool_stride=1).pooled_side == 27
    assert hash(make()) == hash(make())


def test_newlines_are_those_of_the_merge_type() -> None:
    assert make().newline_position == "grid"
    assert make(mm_patch_merge_type="flat").newline_position == "no_token"
    without = make(mm_patch_merge_type="spatial", mm_newline_position="one_token")
    assert without.newline_position == "no_token"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"patch_size": 385}, "tile_size 384 and patch_size 385"),
        ({"mm_patch_merge_type": "pile"}, "--mm-patch-merge-type pile:"),
        (
            {"mm_spatial_pool_mode": "max", "mm_spatial_pool_stride": 3},
            "--mm-spatial-pool-stride 3 .* at most 4 features",
        ),
        ({"mm_spatial_pool_mode": "sum"}, "--mm-spatial-pool-mode sum:"),
        ({"mm_newline_position": "row"}, "--mm-newline-position row:"),
        ({"mm_spatial_pool_stride": 0}, "--mm-spatial-pool-stride 0 .* at least 1"),
        (
            {"mm_spatial_pool_mode": "average", "mm_spatial_pool_stride": 3},
            "--mm-spatial-pool-stride 3 .* at most 4 features",
        ),
        (
            {"patch_size": 384, "mm_spatial_pool_mode": "average"},
            "--mm-spatial-pool-stride 2: a frame has only 1 features",
        ),
        ({"mm_patch_merge_type": "spatial"}, "--mm-newline-position grid: .* spatial has no"),
    ],
)
def test_refusals_name_the_flag_in_one_line(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        make(**changes)
    assert "\n" not in str(caught.value)

"""What a run costs, in the units of the published cards."""

from dataclasses import replace

import pytest
from published_settings import NEXT, ONEVISION

from megatron_llava.plan.image_budget import image_budget
from megatron_llava.plan.recipe import gpu_hours


@pytest.mark.proves("D19")
@pytest.mark.parametrize(
    ("gpus", "hours", "cost"),
    [
        (8, 20, 160),
        (16, 24, 384),
        (32, 30, 960),
        (128, 18, 2304),
        (16, 15, 240),
        (8, 6 + 30 / 60, 52),  # 6H30M
        (8, 13 + 10 / 60, 105 + 1 / 3),  # 13H10M
    ],
)
def test_gpu_hours_of_the_cards(gpus, hours, cost):
    assert gpu_hours(gpus, hours * 3600) == pytest.approx(cost)


@pytest.mark.proves("A8")
@pytest.mark.parametrize(
    ("settings", "tiles", "base", "tokens"),
    [
        (NEXT, 4, 1, 2880),
        (ONEVISION, 9, 1, 7290),
        (replace(ONEVISION, image_aspect_ratio="anyres_max_4"), 4, 1, 3645),
        (replace(ONEVISION, image_aspect_ratio="anyres_max_16"), 16, 1, 12_393),
        (replace(ONEVISION, image_aspect_ratio="anyres_thresholded_9"), 9, 1, 7290),
        (replace(ONEVISION, image_aspect_ratio="anyres"), 36, 1, 37 * 729),
        (replace(ONEVISION, image_aspect_ratio="nobase"), 36, 0, 36 * 729),
        (replace(ONEVISION, mm_patch_merge_type="spatial_unpad_nobase"), 9, 0, 6561),
        (replace(NEXT, image_aspect_ratio="anyres_max_9"), 4, 1, 2880),
        (replace(NEXT, image_aspect_ratio="square", grid_pinpoints=()), 0, 1, 576),
    ],
)
def test_the_budget_of_an_image(settings, tiles, base, tokens):
    budget = image_budget(settings)
    assert (budget.tiles, budget.base, budget.tokens) == (tiles, base, tokens)

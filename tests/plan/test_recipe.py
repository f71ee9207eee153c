"""What a run costs, in the units of the published cards."""

from dataclasses import replace

import pytest
from published_settings import NEXT, ONEVISION

from megatron_llava.config.run import RunConfig
from megatron_llava.data.pack_sizes import NOTHING
from megatron_llava.plan.image_budget import image_budget
from megatron_llava.plan.pack_load import PackLoad
from megatron_llava.plan.recipe import gpu_hours, recipe
from megatron_llava.plan.workload import Workload


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


def steps_of(
    *,
    drop_last: bool,
    samples: int | None = None,
    of_store: tuple[int, int] | None = None,
    **flags: int,
) -> tuple | None:
    """Steps of 64 packs, of 2.5 samples each, and the samples that they take."""
    one = PackLoad(rows=1, loss_rows=1, text_tokens=1, views=1, features=0)
    workload = Workload(largest=one, sizes=NOTHING, samples_per_pack=2.5, said="")
    if of_store is not None:
        workload = replace(workload, samples=of_store[0], packs=of_store[1])
    values = {"drop_last": drop_last, "global_batch_size": 64, **flags}
    found = recipe(RunConfig().with_values(values, "flag"), 1, workload, samples)
    if found is not None and flags:
        return found.steps, found.samples, found.passes
    return None if found is None else (found.steps, found.samples)


@pytest.mark.proves("C13")
def test_drop_last_leaves_whole_steps():
    assert steps_of(drop_last=False, samples=1000) == (7, 1000)
    assert steps_of(drop_last=True, samples=1000) == (6, 960)
    assert steps_of(drop_last=True, samples=960) == (6, 960)
    assert steps_of(drop_last=True, samples=160) == (1, 160)
    with pytest.raises(ValueError, match="--samples 159 are fewer than the 160 of a step"):
        steps_of(drop_last=True, samples=159)


def test_steps_of_a_store_are_those_of_its_packs():
    """Which some packs' average of samples would miss."""
    assert steps_of(drop_last=False) is None
    assert steps_of(drop_last=False, of_store=(1000, 384)) == (6, 1000)
    assert steps_of(drop_last=False, of_store=(1000, 385)) == (7, 1000)
    assert steps_of(drop_last=True, of_store=(998, 384)) == (6, 998)
    # --samples wins.
    assert steps_of(drop_last=True, samples=320, of_store=(998, 384)) == (2, 320)


def test_steps_that_are_given_are_not_counted_again():
    """Of 64 packs of 2.5 samples: 160 each."""
    assert steps_of(drop_last=False, train_iters=10) == (10, 1600, None)
    assert steps_of(drop_last=True, samples=3200, train_iters=10) == (10, 1600, 0.5)
    assert steps_of(drop_last=False, of_store=(800, 320), train_iters=10) == (10, 1600, 2.0)

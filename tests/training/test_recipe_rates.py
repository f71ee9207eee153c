"""Learning rates of the published recipes, each group at each step, against transformers' own."""

import math

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

pytestmark = pytest.mark.usefixtures("single_rank")

ALL = ("mm_mlp_adapter", "mm_vision_tower", "mm_language_model")
# Steps, rate, the tower's, warmup flag, warmup steps, parts that learn.
RECIPES = {
    "D1 558K at 256": (2180, 1e-3, None, {"lr_warmup_fraction": 0.03}, 66, ALL[:1]),
    "D1 with 2000 steps": (2180, 1e-3, None, {"lr_warmup_iters": 2000}, 2000, ALL[:1]),
    "D3 760K at 64": (11_683, 1e-5, 2e-6, {"lr_warmup_fraction": 0.03}, 351, ALL),
    "D3 790K at 64": (12_177, 2e-5, 2e-6, {"lr_warmup_fraction": 0.03}, 366, ALL),
    "D4 158K at 128": (1233, 2e-5, None, {"lr_warmup_fraction": 0.03}, 37, ALL[::2]),
    "D14 474K, up": (14_815, 1e-5, None, {"lr_warmup_fraction": 0.03}, 445, ALL),
    "D14 474K, down": (14_815, 1e-5, None, {"lr_warmup_iters": 444}, 444, ALL),
}


@pytest.mark.proves("D1", "D3", "D4", "D14")
@pytest.mark.parametrize("name", RECIPES)
def test_every_group_has_the_rate_of_transformers_at_every_step(make_parts, name):
    steps, rate, tower_rate, warmup_flag, warmup, learn = RECIPES[name]
    parts = make_parts(
        lr=rate,
        mm_vision_tower_lr=tower_rate,
        train_iters=steps,
        lr_decay_style="cosine",
        weight_decay=0.0,
        mm_tunable_parts=learn,
        **warmup_flag,
    )
    assert parts.config.optimizer.warmup_iters(steps) == warmup
    groups = parts.optimizer.param_groups
    rates = {rate, tower_rate or rate} if ALL[1] in learn else {rate}
    assert sorted({group["max_lr"] for group in groups}) == pytest.approx(sorted(rates))
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(theirs, warmup, steps)
    for step in range(steps):
        share = theirs.param_groups[0]["lr"]
        for group in groups:
            assert math.isclose(group["lr"], group["max_lr"] * share, rel_tol=1e-9, abs_tol=1e-15)
        if step == warmup:
            assert share == 1.0
        parts.scheduler.step(increment=1)
        theirs.step()
        schedule.step()


@pytest.mark.proves("D14")
@pytest.mark.parametrize("steps", [1, 33, 100, 2180, 12_177, 14_815])
def test_warmup_is_rounded_up_or_given_as_a_number(steps):
    """transformers rounds up; code that rounds down is followed by giving its number."""
    from megatron_llava.config.training import OptimizationConfig

    up = OptimizationConfig(lr_warmup_fraction=0.03).warmup_iters(steps)
    down = OptimizationConfig(lr_warmup_iters=int(steps * 0.03)).warmup_iters(steps)
    assert up == math.ceil(steps * 0.03) and down == int(steps * 0.03)
    assert steps != 14_815 or (down, up) == (444, 445)

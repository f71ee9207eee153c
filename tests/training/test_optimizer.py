"""Parameter groups with their rates and decays, and the schedule step by step."""

import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

pytestmark = pytest.mark.usefixtures("single_rank")

LR, TOWER_LR, PROJECTOR_LR = 1e-3, 2e-4, 5e-3
MODULE_RATES = {"mm_vision_tower_lr": TOWER_LR, "mm_projector_lr": PROJECTOR_LR}
STEPS = 20


def groups_by_name(parts):
    """The parameter group of every parameter that learns; each is in exactly one."""
    names = {id(parameter): name for name, parameter in parts.model.named_parameters()}
    found = {}
    for group in parts.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in found
            found[name] = group
    assert found.keys() == set(names.values())
    return found


def factor_of(name):
    """The rate of a parameter's module over --lr."""
    if name.startswith("vision_model."):
        return TOWER_LR / LR
    return PROJECTOR_LR / LR if name.startswith("vision_projection.") else 1.0


def test_matrices_decay_and_vectors_do_not(make_parts):
    parts = make_parts(weight_decay=0.1)
    assert len(parts.optimizer.param_groups) == 2
    decays = {name: g["weight_decay"] for name, g in groups_by_name(parts).items()}
    for name, parameter in parts.model.named_parameters():
        assert decays[name] == (0.1 if parameter.dim() > 1 else 0.0), name
    assert decays["image_newline"] == 0.0
    assert decays["language_model.embedding.word_embeddings.weight"] == 0.1


@pytest.mark.proves("D3")
def test_modules_have_their_own_rates(make_parts):
    parts = make_parts(**MODULE_RATES, min_lr=1e-4)
    # Three rates, each with and without decay.
    assert len(parts.optimizer.param_groups) == 6
    for name, group in groups_by_name(parts).items():
        factor = factor_of(name)
        assert group["max_lr"] == pytest.approx(LR * factor), name
        assert group["min_lr"] == pytest.approx(1e-4 * factor), name
        assert group["lr_mult"] == pytest.approx(factor), name
        assert group["lr"] == pytest.approx(LR * factor), name


def test_each_rate_has_a_name_in_the_log(make_parts):
    from megatron_llava.training.optimizer import learning_rates

    parts = make_parts(**MODULE_RATES)
    assert learning_rates(parts.optimizer) == pytest.approx(
        {"lr": LR, "lr x0.2": TOWER_LR, "lr x5": PROJECTOR_LR}
    )
    same = make_parts(mm_vision_tower_lr=TOWER_LR, mm_projector_lr=TOWER_LR)
    assert learning_rates(same.optimizer) == pytest.approx({"lr": LR, "lr x0.2": TOWER_LR})


@pytest.mark.parametrize("power", range(-8, 0))
def test_equal_ratios_of_rates_are_equal(make_parts, power):
    """2e-5 / 1e-4 and 2e-6 / 1e-5 are not: a resume at a tenth of all rates was refused."""
    rate = float(f"2e{power - 1}")
    parts = make_parts(lr=float(f"1e{power}"), mm_vision_tower_lr=rate)
    assert {(group["lr_mult"], group["max_lr"]) for group in parts.optimizer.param_groups} == {
        (1.0, float(f"1e{power}")),
        (0.2, rate),
    }


def test_a_rate_equal_to_lr_makes_no_group(make_parts):
    parts = make_parts(mm_vision_tower_lr=LR, mm_projector_lr=LR)
    assert len(parts.optimizer.param_groups) == 2
    assert all(group["lr_mult"] == 1.0 for group in parts.optimizer.param_groups)


def test_the_first_update_is_as_large_as_the_rate(make_parts, batch):
    """Adam's first update is the rate in every entry whose gradient is far above epsilon."""
    parts = make_parts(**MODULE_RATES, weight_decay=0.0, adam_eps=1e-20, clip_grad=0.0)
    before = parts.weights()
    parts.step(batch)
    for name, after in parts.weights().items():
        largest = float((after.double() - before[name].double()).abs().max())
        # Weights near 1 are stored with a precision of 6e-8.
        assert largest == pytest.approx(LR * factor_of(name), rel=2e-3), name


SCHEDULES = {
    "cosine": get_cosine_schedule_with_warmup,
    "linear": get_linear_schedule_with_warmup,
    "constant": lambda optimizer, warmup, total: get_constant_schedule_with_warmup(
        optimizer, warmup
    ),
}


@pytest.mark.proves("D3")
@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("style", SCHEDULES)
def test_the_schedule_is_that_of_transformers(make_parts, style, warmup):
    parts = make_parts(lr_decay_style=style, lr_warmup_iters=warmup, **MODULE_RATES)
    reference = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    expected = SCHEDULES[style](reference, warmup, STEPS)
    groups = groups_by_name(parts)
    for step in range(STEPS + 1):
        share = reference.param_groups[0]["lr"]
        assert share == (0.0 if warmup and step == 0 else share)
        for name, group in groups.items():
            assert group["lr"] == pytest.approx(LR * factor_of(name) * share, abs=1e-12), step
        parts.scheduler.step(increment=1)
        reference.step()
        expected.step()


@pytest.mark.parametrize("style", ["cosine", "linear"])
def test_the_rate_ends_at_min_lr_and_stays_there(make_parts, style):
    parts = make_parts(lr_decay_style=style, min_lr=1e-4, lr_decay_iters=10, **MODULE_RATES)
    groups = groups_by_name(parts)
    for step in range(STEPS):
        for name, group in groups.items():
            lowest = 1e-4 * factor_of(name)
            assert group["lr"] >= lowest * (1 - 1e-9)
            assert (group["lr"] == pytest.approx(lowest)) == (step >= 10), (step, name)
        parts.scheduler.step(increment=1)


def test_decay_stays_while_the_rate_falls(make_parts):
    parts = make_parts(lr_decay_style="cosine", weight_decay=0.1)
    for _ in range(STEPS):
        parts.scheduler.step(increment=1)
    assert sorted(group["weight_decay"] for group in parts.optimizer.param_groups) == [0.0, 0.1]

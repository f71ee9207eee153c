"""float16 with a scaled loss, by core's own scaler: what is skipped, counted, and resumed."""

import math

import pytest
import torch

pytestmark = pytest.mark.usefixtures("single_rank")

FP16 = {"fp16": True, "initial_loss_scale": 2.0**10, "loss_scale_window": 2, "hysteresis": 1}


def spoil(parts, value=math.inf):
    """Make every gradient of the newline a number that is none; returns how to stop."""
    return parts.model.image_newline.register_hook(lambda g: torch.full_like(g, value))


def scale_of(parts):
    return float(parts.optimizer.get_loss_scale())


@pytest.mark.proves("D16")
def test_losses_and_norms_are_near_those_of_float32(make_parts, batches):
    half, exact = make_parts(**FP16, lr=1e-2), make_parts(lr=1e-2)
    assert {p.dtype for p in half.model.parameters()} == {torch.float16}
    exact.model.load_state_dict(half.model.state_dict())
    exact.optimizer.reload_model_params()
    for _ in range(4):
        found, expected = half.step(*batches), exact.step(*batches)
        assert found.loss == pytest.approx(expected.loss, rel=5e-3)
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=2e-2)
        assert found.overflowed_at is None and not found.skipped
    assert found.loss < 5 and scale_of(half) == 2.0**12


@pytest.mark.proves("D16")
def test_the_scale_changes_no_gradient(make_parts, batches):
    low, high = (make_parts(**FP16 | {"initial_loss_scale": 2.0**n}) for n in (3, 9))
    assert low.step(*batches).grad_norm == pytest.approx(high.step(*batches).grad_norm, rel=1e-2)


@pytest.mark.proves("D16")
def test_an_overflow_halves_the_scale_and_changes_nothing_else(make_parts, batches):
    parts = make_parts(**FP16)
    parts.step(*batches)
    before, steps = parts.weights(), parts.scheduler.num_steps
    hook = spoil(parts)
    result = parts.step(*batches)
    assert result.skipped and result.overflowed_at == 2.0**10 and scale_of(parts) == 2.0**9
    assert result.microbatches_not_finite == () and math.isfinite(result.loss)
    assert parts.scheduler.num_steps == steps
    assert all(torch.equal(before[name], weight) for name, weight in parts.weights().items())
    hook.remove()
    # The window begins anew behind an overflow: two good steps double the scale.
    assert not parts.step(*batches).skipped and scale_of(parts) == 2.0**9
    assert not parts.step(*batches).skipped and scale_of(parts) == 2.0**10


def test_hysteresis_bears_with_some_overflows(make_parts, batches):
    parts = make_parts(**FP16 | {"hysteresis": 3})
    spoil(parts)
    scales = []
    for _ in range(4):
        assert parts.step(*batches).overflowed_at is not None
        scales.append(scale_of(parts))
    assert scales == [2.0**10, 2.0**10, 2.0**9, 2.0**8]


def test_a_true_overflow_finds_a_scale_that_fits(make_parts, batches):
    """From Megatron's first scale down, by the gradients' own size."""
    parts = make_parts(**FP16 | {"initial_loss_scale": 2.0**32})
    tried = []
    while len(tried) < 32 and (result := parts.step(*batches)).overflowed_at is not None:
        tried.append(result.overflowed_at)
    assert tried[0] == 2.0**32 and tried == [2.0 ** (32 - n) for n in range(len(tried))]
    assert 8 < len(tried) < 28 and not result.skipped and math.isfinite(result.grad_norm)


@pytest.mark.parametrize(
    "scale", [{"initial_loss_scale": 2.0, "min_loss_scale": 2.0}, {"loss_scale": 8.0}], ids=str
)
def test_where_no_lower_scale_is_tried_the_step_is_a_bad_one(make_parts, batches, scale):
    parts = make_parts(**{"fp16": True} | scale)
    spoil(parts)
    result = parts.step(*batches)
    assert result.skipped and result.overflowed_at is None
    assert scale_of(parts) == next(iter(scale.values()))


def test_a_loss_that_is_no_number_is_no_matter_of_the_scale(make_parts, batches):
    parts = make_parts(**FP16)
    parts.model.image_newline.data.fill_(math.nan)
    result = parts.step(*batches)
    assert result.skipped and result.overflowed_at is None
    assert result.microbatches_not_finite == (0,)


def test_the_alignment_loss_is_scaled_too(make_parts, batches):
    align = {"align_loss_coeff": 50.0, "mm_tunable_parts": ("mm_mlp_adapter",)}
    half, exact = make_parts(**FP16, **align), make_parts(**align)
    exact.model.load_state_dict(half.model.state_dict())
    found, expected = half.step(*batches), exact.step(*batches)
    assert found.align_loss == pytest.approx(expected.align_loss, rel=1e-2)
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=2e-2)

"""Delayed scaling against the recipe written down for one number at a time."""

import pytest
import torch

from megatron_llava.ops.fp8 import Fp8Recipe, fp8_linear
from megatron_llava.ops.fp8_delayed import DelayedScales

LARGEST = {"input": 448.0, "weight": 448.0, "gradient": 57344.0}
OPERANDS = tuple(LARGEST)


class Reference:
    """One scale: what it is, and every amax that has been seen."""

    def __init__(self, largest, recipe):
        self.scale, self.seen, self.largest, self.recipe = 1.0, [], largest, recipe

    def end_pass(self, amax):
        self.seen.append(amax)
        window = self.seen[-self.recipe.amax_history_len :]
        chosen = max(window) if self.recipe.amax_compute_algo == "max" else window[-1]
        if chosen > 0:
            self.scale = self.largest / chosen / 2**self.recipe.margin


def layer_step(scales, magnitudes):
    """One forward and backward of one layer with operands of the given amaxes."""
    x_amax, w_amax, g_amax = magnitudes
    x = torch.full((4, 3), 0.5 * x_amax)
    x[1, 1] = -x_amax
    weight = torch.full((2, 3), w_amax)
    forward_pass = scales.begin_forward()
    y = fp8_linear(x.requires_grad_(), weight.requires_grad_(), forward_pass.scaling_of(0))
    scales.end_forward(forward_pass)
    y.backward(torch.full((4, 2), g_amax))
    return y


@pytest.mark.parametrize("margin", [0, 2])
@pytest.mark.parametrize(("length", "algo"), [(1, "most_recent"), (3, "most_recent"), (3, "max")])
def test_scales_follow_the_recipe_over_steps(length, algo, margin):
    recipe = Fp8Recipe(margin=margin, amax_history_len=length, amax_compute_algo=algo)
    scales = DelayedScales(recipe, 1, torch.device("cpu"))
    reference = [Reference(LARGEST[name], recipe) for name in OPERANDS]
    generator = torch.Generator().manual_seed(1)
    for step in range(8):
        magnitudes = (torch.rand(3, generator=generator) * 10 ** (step % 3)).tolist()
        if step == 4:
            magnitudes[0] = 0.0
        assert scales.scales[0].tolist() == pytest.approx([r.scale for r in reference], rel=1e-6)
        layer_step(scales, magnitudes)
        for number, magnitude in zip(reference, magnitudes, strict=True):
            number.end_pass(magnitude)
    newest_first = [r.seen[: -length - 1 : -1] for r in reference]
    assert scales.history[:, 0].T.flatten().tolist() == pytest.approx(sum(newest_first, []))


def test_operands_are_scaled_by_what_was_before():
    """Scales are one at first: what is beyond the format ends there, the next time it fits."""
    scales = DelayedScales(Fp8Recipe(), 1, torch.device("cpu"))
    first = layer_step(scales, (1000.0, 1.0, 1.0))
    second = layer_step(scales, (1000.0, 1.0, 1.0))
    assert first[1].tolist() == [448 + 448 - 448] * 2
    assert second[1].tolist() == pytest.approx([0.0 + 500 + 500 - 1000] * 2, abs=1e-3)
    assert second[0].tolist() == pytest.approx([1500] * 2)


def test_a_forward_without_gradients_changes_nothing():
    scales = DelayedScales(Fp8Recipe(), 1, torch.device("cpu"))
    layer_step(scales, (3.0, 2.0, 1.0))
    before = scales.state_of(0)
    with torch.no_grad():
        forward_pass = scales.begin_forward()
        fp8_linear(torch.ones(4, 3), torch.ones(2, 3), forward_pass.scaling_of(0))
        scales.end_forward(forward_pass)
    assert all(torch.equal(scales.state_of(0)[name], before[name]) for name in before)


def test_gradients_are_taken_in_when_the_first_layer_has_them():
    """Two microbatches whose forwards come first, as in a pipeline, roll the history twice."""
    recipe = Fp8Recipe(amax_history_len=4)
    scales = DelayedScales(recipe, 2, torch.device("cpu"))
    outputs = []
    for _ in range(2):
        forward_pass = scales.begin_forward()
        y = torch.ones(4, 3, requires_grad=True)
        for layer in range(2):
            y = fp8_linear(y, torch.eye(3), forward_pass.scaling_of(layer))
        scales.end_forward(forward_pass)
        outputs.append(y)
    assert scales.history[:2, :, 0].all() and not scales.history[2:, :, 0].any()
    for number, y in enumerate(outputs):
        y.backward(torch.full((4, 3), 4.0 ** (1 - number)))
        assert torch.count_nonzero(scales.history[:, :, 2]) == 2 * (number + 1)
    assert scales.history[:2, :, 2].tolist() == [[1.0, 1.0], [4.0, 4.0]]


def test_a_pass_keeps_its_scales_for_recomputation():
    scales = DelayedScales(Fp8Recipe(), 1, torch.device("cpu"))
    torch.manual_seed(0)
    x, weight = 100 * torch.randn(4, 3), torch.randn(2, 3)
    forward_pass = scales.begin_forward()
    first = fp8_linear(x, weight, forward_pass.scaling_of(0))
    scales.end_forward(forward_pass)
    layer_step(scales, (7.0, 7.0, 7.0))
    before = scales.state_of(0)
    assert torch.equal(fp8_linear(x, weight, forward_pass.scaling_of(0)), first)
    other = fp8_linear(x, weight, scales.begin_forward().scaling_of(0))
    assert not torch.equal(other, first)
    assert all(torch.equal(scales.state_of(0)[name], before[name]) for name in before)


def test_weights_are_rounded_once_a_step():
    """By the scale of its first pass; the second one sees no weight, and the scale stays."""
    scales = DelayedScales(Fp8Recipe(amax_history_len=3), 1, torch.device("cpu"))
    scales.begin_step()
    for _ in range(2):
        assert layer_step(scales, (1.0, 1000.0, 1.0))[0, 0] == 3 * 448 / 2
    scales.end_step()
    assert scales.history[:, 0, 1].tolist() == [0.0, 1000.0, 0.0]
    assert scales.scales[0, 1].item() == pytest.approx(0.448)
    scales.begin_step()
    assert layer_step(scales, (1.0, 1000.0, 1.0))[0, 0].item() == pytest.approx(1500)
    with torch.no_grad():
        other = scales.begin_forward().scaling_of(0).quantize_weight(torch.ones(2, 3))[0]
    assert not torch.equal(other, scales.weights[0][0])


@pytest.mark.parametrize("length", [1, 3, 5])
def test_states_move_to_histories_of_another_length(length):
    scales = DelayedScales(Fp8Recipe(amax_history_len=3), 2, torch.device("cpu"))
    for amax in (1.0, 2.0, 3.0):
        layer_step(scales, (amax, amax, amax))
    other = DelayedScales(Fp8Recipe(amax_history_len=length), 2, torch.device("cpu"))
    other.load_state_of(1, scales.state_of(0))
    assert torch.equal(other.scales[1], scales.scales[0])
    assert other.history[:, 1, 0].tolist() == [3.0, 2.0, 1.0, 0.0, 0.0][:length]
    assert not other.history[:, 0].any()

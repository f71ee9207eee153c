import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_llava.ops.visual_pack import visual_pack

TAPS = 4


@st.composite
def problems(draw):
    """Tables, a plan of 0 to 4 taps in any columns, and a gradient of the output."""
    features, specials, text = draw(st.integers(1, 9)), 1, draw(st.integers(0, 6))
    rows, hidden = draw(st.integers(0, 12)), draw(st.integers(1, 5))
    most = draw(st.sampled_from([0, 1, TAPS]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tables = [
        torch.randn(count, hidden, generator=generator).to(dtype)
        for count in (features, specials, text)
    ]
    taps = torch.randint(0, features + specials + text, (rows, TAPS), generator=generator)
    weights = torch.randn(rows, TAPS, generator=generator)
    used = torch.rand(rows, TAPS, generator=generator).argsort(1) < torch.randint(
        0, most + 1, (rows, 1), generator=generator
    )
    weights = torch.where(used, weights, 0.0)
    return tables, taps.where(used, 0), weights, torch.randn(rows, hidden, generator=generator)


def slow_visual_pack(tables, taps, weights):
    """Row by row and tap by tap in float64."""
    table = torch.cat([part.double() for part in tables])
    rows = []
    for row_taps, row_weights in zip(taps.tolist(), weights.double().tolist(), strict=True):
        row = 0.0 * table[0]  # zeros that have a gradient
        for tap, weight in zip(row_taps, row_weights, strict=True):
            if weight != 0.0:
                row = row + weight * table[tap]
        rows.append(row)
    return torch.stack(rows) if rows else table[:0]


def with_gradients(operator, tables, taps, weights, grad):
    """The output, and the gradients of the three tables."""
    leaves = [part.detach().clone().requires_grad_() for part in tables]
    out = operator(leaves, taps, weights)
    gradients = torch.autograd.grad(out, leaves, grad.to(out.dtype), allow_unused=True)
    zeros = [torch.zeros_like(leaf) for leaf in leaves]
    return out.detach(), [z if g is None else g for g, z in zip(gradients, zeros, strict=True)]


def tolerance(dtype, magnitude):
    """A few float32 roundings of the terms; in bfloat16 one more of the result: half of 2**-7."""
    return 1e-5 if dtype == torch.float32 else 2**-8 * magnitude.abs() + 1e-5


@settings(max_examples=150, deadline=None)
@given(problems())
def test_equals_the_slow_loop_forward_and_backward(problem):
    tables, taps, weights, grad = problem
    dtype = tables[0].dtype
    grad = grad.to(dtype)
    out, gradients = with_gradients(lambda t, *plan: visual_pack(*t, *plan), *problem[:3], grad)
    expected, expected_gradients = with_gradients(slow_visual_pack, tables, taps, weights, grad)
    assert out.dtype == dtype and all(g.dtype == dtype for g in gradients)
    assert ((out - expected).abs() <= tolerance(dtype, expected)).all()
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        assert ((found - wanted).abs() <= tolerance(dtype, wanted.double())).all()


@settings(max_examples=50, deadline=None)
@given(problems())
def test_the_same_inputs_give_the_same_bits(problem):
    def run():
        return with_gradients(lambda t, *plan: visual_pack(*t, *plan), *problem)

    first, second = run(), run()
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


@pytest.mark.parametrize("most", [1, TAPS])
def test_gradcheck_in_float64(most):
    generator = torch.Generator().manual_seed(most)
    tables = [torch.randn(n, 3, generator=generator).double().requires_grad_() for n in (5, 1, 4)]
    taps = torch.randint(0, 10, (8, TAPS), generator=generator)
    weights = torch.randn(8, TAPS, generator=generator)
    weights[:, most:] = 0.0
    weights[3] = 0.0
    assert torch.autograd.gradcheck(lambda *t: visual_pack(*t, taps, weights), tables)


@pytest.mark.parametrize("other_taps", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_without_taps_are_exactly_zero_whatever_stands_in_the_table(other_taps, dtype):
    """Unused taps name row 0: neither an infinity there nor a gradient here may leak through."""
    features = torch.ones(4, 3, dtype=dtype)
    features[0] = torch.inf
    features.requires_grad_()
    specials = torch.ones(1, 3, dtype=dtype, requires_grad=True)
    text = torch.ones(2, 3, dtype=dtype, requires_grad=True)
    taps, weights = torch.zeros(3, TAPS, dtype=torch.int64), torch.zeros(3, TAPS)
    taps[1, :other_taps], weights[1, :other_taps] = 2, 0.5
    out = visual_pack(features, specials, text, taps, weights)
    assert torch.equal(out[[0, 2]], torch.zeros(2, 3, dtype=dtype))
    assert torch.isfinite(out).all()
    grad = torch.tensor([[torch.inf], [1.0], [torch.inf]], dtype=dtype).expand(3, 3)
    out.backward(grad)
    assert not features.grad[[0, 1, 3]].any() and features.grad[2].any()
    assert not specials.grad.any() and not text.grad.any()


@pytest.mark.parametrize("bilinear", [False, True])
def test_a_row_used_often_has_a_gradient_summed_in_float32(bilinear):
    """image_newline ends every line of patches of every image: thousands of uses in one pack."""
    uses = 4096
    features = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    newline = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    text = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    taps = torch.zeros(uses + 1, TAPS, dtype=torch.int64)
    weights = torch.zeros(uses + 1, TAPS)
    taps[:uses, 0], weights[:uses, 0] = 2, 1.0
    if bilinear:
        taps[uses, :2] = torch.tensor([0, 1])
        weights[uses, :2] = 0.5
    visual_pack(features, newline, text, taps, weights).sum().backward()
    assert newline.grad.item() == uses


def test_a_row_does_not_depend_on_the_other_rows_of_the_pack():
    """bfloat16: a weight of one third gives the same bits with and without bilinear neighbours."""
    features = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    specials, text = features[:1], features[:0]
    taps = torch.tensor([[1, 0, 0, 0], [2, 3, 0, 0]])
    weights = torch.tensor([[1 / 3, 0, 0, 0], [0.5, 0.5, 0, 0]])
    both = visual_pack(features, specials, text, taps, weights)
    alone = visual_pack(features, specials, text, taps[:1], weights[:1])
    assert torch.equal(alone[0], both[0])


def test_a_frozen_table_gets_no_gradient():
    features, specials = torch.ones(2, 3), torch.ones(1, 3)
    text = torch.ones(1, 3, requires_grad=True)
    taps = torch.tensor([[0, 0, 0, 0], [3, 0, 0, 0]])
    weights = torch.tensor([[1.0, 0, 0, 0], [2.0, 0, 0, 0]])
    visual_pack(features, specials, text, taps, weights).sum().backward()
    assert torch.equal(text.grad, torch.full((1, 3), 2.0))
    assert features.grad is None and specials.grad is None

"""The visual packing operator, compiled and in plain torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pack_plans import (
    TAPS,
    plan_of,
    random_plan,
    random_tables,
    slow_visual_pack,
    with_gradients,
    with_positions,
)

from megatron_llava.ops.operators import compiled_for
from megatron_llava.ops.visual_pack import visual_pack
from megatron_llava.ops.visual_pack_torch import visual_pack_torch


def plain(features, specials, text, *rest):
    *positions, plan = rest
    positions = positions[0] if positions else features[:0]
    plan = plan.taps, plan.weights, plan.feature_positions
    return visual_pack_torch(features, specials, text, positions, *plan)


def compiled(features, specials, text, *rest):
    if not compiled_for(features):
        pytest.skip("the package was installed without a compiler")
    *positions, plan = rest
    return visual_pack(features, specials, text, plan, *positions)


both = pytest.mark.parametrize("operator", [compiled, plain])


@st.composite
def problems(draw):
    """Tables, a plan of 0 to 4 taps in any columns, and a gradient of the output."""
    counts = draw(st.integers(1, 9)), draw(st.integers(0, 3)), draw(st.integers(0, 6))
    positions = draw(st.sampled_from([0, 0, 1, 4]))
    rows, hidden = draw(st.integers(0, 12)), draw(st.sampled_from([1, 2, 5, 16, 33, 64, 150]))
    most = draw(st.sampled_from([0, 1, TAPS]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tables = random_tables((*counts, positions)[: 4 if positions else 3], hidden, dtype, generator)
    taps = torch.randint(0, sum(counts), (rows, TAPS), generator=generator)
    weights = torch.randn(rows, TAPS, generator=generator)
    used = torch.rand(rows, TAPS, generator=generator).argsort(1) < torch.randint(
        0, most + 1, (rows, 1), generator=generator
    )
    plan = plan_of(taps.where(used, 0), torch.where(used, weights, 0.0), sum(counts))
    plan = with_positions(plan, counts[0], positions, generator)
    return tables, plan, torch.randn(rows, hidden, generator=generator).to(dtype)


def tolerance(dtype, magnitude):
    """A few float32 roundings of the terms, and the next number of the result's own type: sums
    that lie close to the middle between two of those may be rounded either way."""
    last = {torch.float32: 0.0, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    return last * magnitude.abs() + 2e-5


@both
@settings(max_examples=100, deadline=None)
@given(problem=problems())
def test_equals_the_slow_loop_forward_and_backward(operator, problem):
    tables, plan, grad = problem
    dtype = tables[0].dtype
    results = with_gradients(lambda *t: operator(*t, plan), tables, grad)
    expected = with_gradients(lambda *t: slow_visual_pack(t, plan), tables, grad)
    for found, wanted in zip(results, expected, strict=True):
        assert found.dtype == dtype and found.shape == wanted.shape
        assert ((found - wanted).abs() <= tolerance(dtype, wanted.double())).all()


@settings(max_examples=100, deadline=None)
@given(problem=problems())
def test_compiled_rows_equal_the_plain_ones_bit_for_bit(problem):
    tables, plan, _ = problem
    assert torch.equal(compiled(*tables, plan), plain(*tables, plan))


@both
def test_the_same_inputs_give_the_same_bits_with_any_number_of_threads(operator):
    generator = torch.Generator().manual_seed(0)
    counts = 90, 2, 60, 5
    tables = random_tables(counts, 300, torch.float32, generator)
    plan, grad = random_plan(500, counts, generator), torch.randn(500, 300, generator=generator)
    threads = torch.get_num_threads()
    runs = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            runs.append(with_gradients(lambda *t: operator(*t, plan), tables, grad))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


@both
@pytest.mark.parametrize("most", [1, TAPS])
def test_gradcheck_in_float64(operator, most):
    generator = torch.Generator().manual_seed(most)
    tables = random_tables((5, 1, 4, 3), 3, torch.float64, generator)
    tables = [table.requires_grad_() for table in tables]
    taps = torch.randint(0, 10, (8, TAPS), generator=generator)
    weights = torch.randn(8, TAPS, generator=generator)
    weights[:, most:] = 0.0
    weights[3] = 0.0
    plan = with_positions(plan_of(taps, weights, 10), 5, 3, generator)
    assert torch.autograd.gradcheck(lambda *t: operator(*t, plan), tables)


@both
@pytest.mark.parametrize("other_taps", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_without_taps_are_exactly_zero_whatever_stands_in_the_table(
    operator, other_taps, dtype
):
    """Unused taps name row 0: neither an infinity there nor a gradient here may leak through."""
    features = torch.ones(4, 3, dtype=dtype)
    features[0] = torch.inf
    features.requires_grad_()
    specials = torch.ones(1, 3, dtype=dtype, requires_grad=True)
    text = torch.ones(2, 3, dtype=dtype, requires_grad=True)
    taps, weights = torch.zeros(3, TAPS, dtype=torch.int64), torch.zeros(3, TAPS)
    taps[1, :other_taps], weights[1, :other_taps] = 2, 0.5
    out = operator(features, specials, text, plan_of(taps, weights, 7))
    assert torch.equal(out[[0, 2]], torch.zeros(2, 3, dtype=dtype))
    assert torch.isfinite(out).all()
    grad = torch.tensor([[torch.inf], [1.0], [torch.inf]], dtype=dtype).expand(3, 3)
    out.backward(grad)
    assert not features.grad[[0, 1, 3]].any() and features.grad[2].any()
    assert not specials.grad.any() and not text.grad.any()


@both
@pytest.mark.parametrize("bilinear", [False, True])
def test_a_row_used_often_has_a_gradient_summed_in_float32(operator, bilinear):
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
    operator(features, newline, text, plan_of(taps, weights, 4)).sum().backward()
    assert newline.grad.item() == uses


@both
def test_a_row_does_not_depend_on_the_other_rows_of_the_pack(operator):
    """bfloat16: a weight of one third gives the same bits with and without bilinear neighbours."""
    features = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    specials, text = features[:1], features[:0]
    taps = torch.tensor([[1, 0, 0, 0], [2, 3, 0, 0]])
    weights = torch.tensor([[1 / 3, 0, 0, 0], [0.5, 0.5, 0, 0]])
    together = operator(features, specials, text, plan_of(taps, weights, 5))
    alone = operator(features, specials, text, plan_of(taps[:1], weights[:1], 5))
    assert torch.equal(alone[0], together[0])


@both
def test_a_frozen_table_gets_no_gradient(operator):
    generator = torch.Generator().manual_seed(0)
    counts = 6, 2, 5, 3
    plan = random_plan(40, counts, generator)
    tables = random_tables(counts, 3, torch.float32, generator)
    grad = torch.randn(40, 3, generator=generator)
    _, *expected = with_gradients(lambda *t: operator(*t, plan), tables, grad)
    for trained in range(4):
        leaves = [t.clone().requires_grad_(n == trained) for n, t in enumerate(tables)]
        operator(*leaves, plan).backward(grad)
        for number, leaf in enumerate(leaves):
            if number == trained:
                assert torch.equal(leaf.grad, expected[number])
            else:
                assert leaf.grad is None


@both
def test_tables_and_gradients_need_not_be_contiguous(operator):
    generator = torch.Generator().manual_seed(0)
    counts = 6, 2, 5, 3
    plan = random_plan(9, counts, generator)
    tables = random_tables(counts, 4, torch.float32, generator)
    grad = torch.randn(4, 9, generator=generator).T
    expected = with_gradients(lambda *t: operator(*t, plan), tables, grad.contiguous())
    strided = [t.T.contiguous().T for t in tables]
    found = with_gradients(lambda *t: operator(*t, plan), strided, grad)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@both
@pytest.mark.parametrize("hidden", [3, 64])
def test_every_element_of_the_outputs_is_written(operator, hidden):
    """New memory is filled with NaN; nothing of that may remain."""
    generator = torch.Generator().manual_seed(0)
    counts = 60, 2, 50, 9
    plan = random_plan(40, counts, generator)
    tables = random_tables(counts, hidden, torch.float32, generator)
    grad = torch.randn(40, hidden, generator=generator)
    expected = with_gradients(lambda *t: operator(*t, plan), tables, grad)
    try:
        torch.use_deterministic_algorithms(True)
        assert torch.empty(9).isnan().all()
        found = with_gradients(lambda *t: operator(*t, plan), tables, grad)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@both
def test_positions_of_zeros_change_no_bit_and_only_used_ones_have_a_gradient(operator):
    generator = torch.Generator().manual_seed(0)
    counts = 60, 2, 50, 9
    plan = random_plan(40, counts, generator)
    tables = random_tables(counts, 24, torch.bfloat16, generator)
    tables[3].zero_()
    grad = torch.randn(40, 24, generator=generator)
    out, *gradients = with_gradients(lambda *t: operator(*t, plan), tables, grad)
    expected = with_gradients(lambda *t: operator(*t, plan), tables[:3], grad)
    assert all(torch.equal(a, b) for a, b in zip([out, *gradients[:3]], expected, strict=True))
    used_features = plan.taps[plan.weights != 0]
    used_features = used_features[used_features < counts[0]]
    used = plan.feature_positions[used_features].unique()
    has_gradient = gradients[3].any(1).nonzero().squeeze(1)
    assert has_gradient.tolist() == used[used >= 0].tolist() != []

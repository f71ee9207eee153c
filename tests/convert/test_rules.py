import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.convert.rules import (
    COLUMN,
    Copy,
    GateUp,
    GroupedQKV,
    Reshape,
    Rule,
    SomeParts,
    Stack,
    Vocabulary,
    for_layers,
)


@given(
    groups=st.integers(1, 4),
    heads=st.integers(1, 4),
    channels=st.integers(1, 5),
    tail=st.sampled_from([(), (3,)]),
)
def test_qkv_rows_are_grouped_and_come_back(groups, heads, channels, tail):
    kind = GroupedQKV(groups, heads, channels)
    rows = (groups * heads * channels, groups * channels, groups * channels)
    query, key, value = (torch.randn(count, *tail) for count in rows)
    fused = kind.to_megatron([query, key, value])
    assert tuple(fused.shape) == kind.megatron_shape([tuple(t.shape) for t in (query, key, value)])
    # The definition, row by row: group g is its query heads, then its key, then its value.
    expected = []
    for group in range(groups):
        first = group * heads * channels
        expected += list(query[first : first + heads * channels])
        expected += list(key[group * channels : (group + 1) * channels])
        expected += list(value[group * channels : (group + 1) * channels])
    assert torch.equal(fused, torch.stack(expected))
    for found, original in zip(kind.to_hf(fused), (query, key, value), strict=True):
        assert torch.equal(found, original)


def test_gate_comes_before_up():
    gate, up = torch.zeros(3, 2), torch.ones(3, 2)
    fused = GateUp().to_megatron([gate, up])
    assert torch.equal(fused, torch.tensor([[0.0, 0.0]] * 3 + [[1.0, 1.0]] * 3))
    assert GateUp().megatron_shape([(3, 2), (3, 2)]) == (6, 2)
    assert all(torch.equal(a, b) for a, b in zip(GateUp().to_hf(fused), (gate, up), strict=True))


def test_factors_are_stacked_and_come_back():
    factors = [torch.randn(2, 5) for _ in range(3)]
    stacked = Stack().to_megatron(factors)
    assert tuple(stacked.shape) == Stack().megatron_shape([(2, 5)] * 3) == (3, 2, 5)
    assert all(torch.equal(a, b) for a, b in zip(Stack().to_hf(stacked), factors, strict=True))


def test_vocabulary_is_padded_with_zeros_and_cut_again():
    rows = torch.randn(5, 2)
    kind = Vocabulary(5, 8)
    padded = kind.to_megatron([rows])
    assert padded.shape == (8, 2) == kind.megatron_shape([(5, 2)])
    assert torch.equal(padded[5:], torch.zeros(3, 2))
    padded[5:] = 7.0  # whatever training left in the padding
    assert torch.equal(kind.to_hf(padded)[0], rows)


def test_reshape_keeps_elements():
    kind = Reshape((4,), (1, 1, 4))
    token = torch.randn(4)
    assert kind.to_megatron([token]).shape == (1, 1, 4)
    assert torch.equal(kind.to_hf(kind.to_megatron([token]))[0], token)


def test_layers_are_expanded_on_both_sides():
    rule = Rule("m.{layer}.w", ("h.{layer}.a", "h.{layer}.b"), GateUp(), ((2, 2),) * 2, COLUMN)
    names = [(row.megatron, row.hf) for row in for_layers([rule], 2)]
    assert names == [("m.0.w", ("h.0.a", "h.0.b")), ("m.1.w", ("h.1.a", "h.1.b"))]


def test_an_unknown_axis_is_refused():
    with pytest.raises(AssertionError):
        Rule("m", ("h",), Copy(), ((1,),), "diagonal")


def test_parts_that_are_not_stored_are_zero():
    parts = [torch.randn(rows, 3) for rows in (8, 4, 4)]
    kind = GroupedQKV(2, 2, 2)
    some = SomeParts(kind, ((8, 3), (4, 3), (4, 3)), (0, 2))
    stored = [parts[0], parts[2]]
    made = some.to_megatron(stored)
    assert tuple(made.shape) == some.megatron_shape([(8, 3), (4, 3)])
    assert torch.equal(made, kind.to_megatron([parts[0], torch.zeros(4, 3), parts[2]]))
    assert all(torch.equal(a, b) for a, b in zip(some.to_hf(made), stored, strict=True))

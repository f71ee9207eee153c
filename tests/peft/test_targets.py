"""Which outputs of a fused linear belong to which part, at every split of its rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.convert.rules import GateUp, GroupedQKV

pytestmark = pytest.mark.usefixtures("cpu_platform")


@st.composite
def attention(draw):
    """Query groups, heads in each, channels, and ranks that split the heads evenly."""
    groups = draw(st.sampled_from([1, 2, 4, 7]))
    heads = draw(st.integers(1, 4))
    channels = draw(st.sampled_from([2, 8]))
    total = groups * (heads + 2) * channels
    ranks = draw(st.sampled_from([r for r in (1, 2, 4, 7, 8) if total % r == 0]))
    return groups, heads, channels, ranks


@given(attention())
def test_shares_of_the_ranks_are_the_rows_that_conversion_makes(shape):
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_llava.peft.targets import part_of_outputs

    groups, heads, channels, ranks = shape
    config = TransformerConfig(
        num_layers=1,
        hidden_size=groups * heads * channels,
        num_attention_heads=groups * heads,
        num_query_groups=groups,
        kv_channels=channels,
    )
    rows = (groups * heads * channels, groups * channels, groups * channels)
    labels = [torch.full((count,), float(part)) for part, count in enumerate(rows)]
    expected = GroupedQKV(groups, heads, channels).to_megatron(labels).tolist()
    share = sum(rows) // ranks
    found = [part_of_outputs("linear_qkv", config, share, rank) for rank in range(ranks)]
    assert [part for own in found for part in own] == expected


@given(st.integers(1, 5))
def test_every_rank_has_its_share_of_gate_and_up(half):
    from megatron_llava.peft.targets import part_of_outputs

    expected = GateUp().to_megatron([torch.zeros(half), torch.ones(half)]).tolist()
    assert all(part_of_outputs("linear_fc1", None, 2 * half, r) == expected for r in (0, 1))


def test_a_mask_has_a_column_for_each_target_in_the_order_of_the_linear():
    from megatron_llava.peft.targets import part_mask

    mask = part_mask("linear_qkv", ("v_proj", "up_proj", "q_proj"), [0, 0, 1, 2])
    assert mask.int().tolist() == [[1, 0], [1, 0], [0, 0], [0, 1]]

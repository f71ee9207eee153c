"""Attention of one new row to the rows kept is the last row of attention over all of them."""

import pytest
import torch

from megatron_llava.ops.attention import packed_attention
from megatron_llava.ops.key_value_cache import KeyValueCache


def cumulative(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
def test_new_rows_attend_to_all_of_their_sequence(heads):
    torch.manual_seed(0)
    query_heads, groups = heads
    lengths, steps, padding = [5, 1, 9], 3, 2
    rows = [
        [torch.randn(length + steps, count, 8) for count in (query_heads, groups, groups)]
        for length in lengths
    ]
    each = list(zip(rows, lengths, strict=True))
    prompts = [torch.cat([t[kind][:length] for t, length in each]) for kind in range(3)]
    cache = KeyValueCache(cumulative(lengths), room=steps)
    for layer in (1, 2):
        cache.fill(layer, prompts[1] * layer, prompts[2])
    for step in range(steps):
        positions = cache.next_positions()
        assert positions.tolist() == [length + step for length in lengths]
        for layer in (1, 2):
            new = [torch.stack([t[kind][n + step] for t, n in each]) for kind in range(3)]
            query, key, value = (torch.cat([t, torch.ones(padding, *t.shape[1:])]) for t in new)
            found = cache.attend(layer, query, key * layer, value, 0.3)
            assert found.shape == (len(lengths) + padding, query_heads * 8)
            assert not found[len(lengths) :].any()
            for number, length in enumerate(lengths):
                whole = length + step + 1
                query, key, value = (tensor[:whole] for tensor in rows[number])
                expected = packed_attention(
                    query, key * layer, value, cumulative([whole]), whole, causal=True, scale=0.3
                )
                torch.testing.assert_close(found[number], expected[-1])


def test_more_steps_than_there_is_room_for_are_no_silent_overwriting():
    cache = KeyValueCache(cumulative([3]), room=1)
    cache.next_positions()
    with pytest.raises(AssertionError):
        cache.next_positions()

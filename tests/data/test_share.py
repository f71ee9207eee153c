"""Shares of a pack: together they are the pack, and every rank knows what the others send."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import mixed_samples, tiny_config, tiny_sample

from megatron_llava.data.collate import collate
from megatron_llava.data.pad import pad_batch
from megatron_llava.data.row_plan import NumpyPlanner
from megatron_llava.data.share import Share, dealt_views, rows_of_rank, share_of_pack
from megatron_llava.vision.settings import image_settings

SETTINGS = image_settings(tiny_config())
LARGEST = replace(SETTINGS, image_aspect_ratio="anyres", mm_patch_merge_type="spatial_maxpool2x2")
TOKENS = SETTINGS.tokens_per_view


def share(context_rank: int, context: int, tensor_rank: int = 0, tensor: int = 1) -> Share:
    return Share(
        context_rank=context_rank,
        context_size=context,
        view_rank=context_rank * tensor + tensor_rank,
        view_size=context * tensor,
    )


def shares_of(samples, context, tensor=1, rows=None, images=SETTINGS):
    """The pack as each rank that shares its views sees it, and the pack itself."""
    multiple = 2 * context if context > 1 else 1
    how = {"sequence_multiple": multiple, "pad_multiple": multiple}
    whole = collate(samples, images, **how)
    found = []
    for rank in range(context * tensor):
        batch = collate(samples, images, view_share=(rank, context * tensor), **how)
        batch = batch if rows is None else pad_batch(batch, rows)
        mine = share(rank // tensor, context, rank % tensor, tensor)
        found.append(share_of_pack(batch, mine, TOKENS, pools_by_max=images.pools_by_max))
    return (whole if rows is None else pad_batch(whole, rows)), found


@given(views=st.integers(0, 200), size=st.integers(1, 16))
def test_views_are_dealt_evenly(views, size):
    dealt = [dealt_views(views, rank, size) for rank in range(size)]
    assert [view for part in dealt for view in part] == list(range(max(views, 1)))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


@given(chunks=st.lists(st.integers(1, 5), min_size=1, max_size=6), size=st.integers(1, 4))
def test_each_sequence_is_cut_for_balance(chunks, size):
    lengths = np.array(chunks) * 2 * size
    cu_seqlens = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    rows = [rows_of_rank(cu_seqlens, rank, size) for rank in range(size)]
    assert sorted(np.concatenate(rows)) == list(range(cu_seqlens[-1]))
    # Causal attention costs a row its place in its sequence: alike on all ranks.
    starts = np.repeat(cu_seqlens[:-1], lengths)
    assert len({int((part - starts[part]).sum()) for part in rows}) == 1


def test_rotary_positions_are_those_that_core_takes(single_rank):
    """Core cuts its table of angles by the rule that our rows follow."""
    import torch
    from megatron.core.models.common.embeddings.rope_utils import _get_thd_freqs_on_this_cp_rank

    whole, parts = shares_of(mixed_samples(), 2)
    table = torch.arange(int(whole.max_seqlen))
    for rank, part in enumerate(parts):
        lengths = np.diff(whole.cu_seqlens) // 2
        expected = [
            _get_thd_freqs_on_this_cp_rank(rank, 2, torch.empty(length), table)
            for length in lengths.tolist()
        ]
        assert part.position_ids.tolist() == torch.cat(expected).tolist()


def test_a_lone_rank_has_the_whole_pack():
    whole = collate(mixed_samples(), SETTINGS)
    assert share_of_pack(whole, Share(), TOKENS) is whole


samples_strategy = st.lists(
    st.builds(
        tiny_sample,
        st.lists(st.tuples(st.integers(5, 90), st.integers(5, 90)), max_size=2),
        st.integers(1, 12),
        st.integers(0, 1000),
    ),
    min_size=1,
    max_size=4,
)


def with_largest(features, batch):
    """Feature rows, and behind them the largest of some, where a batch has such rows."""
    if batch.max_taps is None:
        return features
    return np.concatenate((features, features[batch.max_taps].max(1)))


@pytest.mark.proves("A6")
@pytest.mark.parametrize("images", [SETTINGS, LARGEST], ids=["sums", "largest"])
@settings(max_examples=25, deadline=None)
@given(samples=samples_strategy, context=st.integers(1, 3), tensor=st.integers(1, 3))
def test_shares_make_up_the_pack(images, samples, context, tensor):
    if context * tensor == 1:
        return
    whole, shares = shares_of(samples, context, tensor, images=images)
    tiles = np.concatenate(
        [
            part.tiles[: len(dealt_views(whole.num_views, r, len(shares)))]
            for r, part in enumerate(shares)
        ]
    )
    assert np.array_equal(tiles, whole.tiles)
    num_features = max(whole.num_views, 1) * TOKENS
    # A table of one column whose rows carry their own numbers.
    numbers = with_largest(np.arange(num_features, dtype=np.float64), whole)
    others = np.arange(num_features, num_features + 1 + len(whole.token_ids))
    numbers = np.concatenate((numbers, others))
    text = dict(enumerate(whole.token_ids, num_features + 1))
    seen = np.full(len(whole.position_ids), np.nan)
    for rank, part in enumerate(shares):
        features = received(shares, rank, whole.num_views)
        assert features.max() < num_features
        largest = 0 if whole.max_taps is None else len(whole.max_taps)
        own_text = _text_rows(whole, part, num_features, largest, rank // tensor, context)
        table = np.concatenate((with_largest(features, part), [num_features], own_text))
        values = (table[part.taps] * part.weights).sum(1)
        rows = rows_of_rank(whole.cu_seqlens, rank // tensor, context)
        seen[rows] = values
        for number, token in zip(own_text, part.token_ids, strict=False):
            # A rank without text has one token that no row uses.
            assert number == 0 or text[number] == token
        assert_transposed(part, len(table) - len(own_text) + len(part.token_ids))
    assert np.allclose(seen, (numbers[whole.taps] * whole.weights).sum(1))


def assert_transposed(batch, table_rows):
    """The uses of table rows that a batch states are those of its taps."""
    assert batch.num_table_rows == table_rows
    uses = NumpyPlanner().transpose(batch.taps, batch.weights, table_rows)
    for found, expected in zip(
        (batch.csr_offsets, batch.csr_rows, batch.csr_weights), uses, strict=True
    ):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("context", [1, 2])
def test_uses_of_padded_packs(context):
    whole, shares = shares_of(mixed_samples(), context, rows=4000)
    num_features = whole.num_views * TOKENS
    assert_transposed(whole, num_features + 1 + len(whole.token_ids))
    for part in shares[context == 1 :]:
        received_rows = sum(part.exchange.receive_counts)
        assert_transposed(part, received_rows + 1 + len(part.token_ids))


def test_special_rows_of_a_share():
    """All four special rows keep their order behind the features that a share receives."""
    with_specials = replace(SETTINGS, image_separator=True, image_start_end=True)
    samples = [tiny_sample([(30, 20), (20, 40)], 9, 1)]
    whole = collate(samples, with_specials, sequence_multiple=4, pad_multiple=4)
    num_features = whole.num_views * TOKENS
    for rank in range(2):
        part = share_of_pack(whole, share(rank, 2), TOKENS)
        rows = rows_of_rank(whole.cu_seqlens, rank, 2)
        first = sum(part.exchange.receive_counts)
        old, new = whole.taps[rows, 0] - num_features, part.taps[:, 0] - first
        special = (old >= 0) & (old < 4)
        assert special.any() and np.array_equal(new[special], old[special])
        tokens = part.token_ids[new[old >= 4] - 4]
        assert np.array_equal(tokens, whole.token_ids[old[old >= 4] - 4])
        assert_transposed(part, first + 4 + len(part.token_ids))


def received(shares, rank, num_views):
    """Numbers of the feature rows that a rank gets, as the senders' plans say."""
    parts = []
    for sender, part in enumerate(shares):
        plan = part.exchange
        assert sum(plan.send_counts) == len(plan.send_rows)
        assert plan.send_counts[rank] == shares[rank].exchange.receive_counts[sender]
        first = dealt_views(num_views, sender, len(shares)).start * TOKENS
        start = sum(plan.send_counts[:rank])
        parts.append(plan.send_rows[start : start + plan.send_counts[rank]] + first)
    return np.concatenate(parts)


def _text_rows(whole, part, num_features, largest, context_rank, context):
    """Numbers of the text rows of a rank, rows that are the largest of some not counted."""
    taps = whole.taps[rows_of_rank(whole.cu_seqlens, context_rank, context)]
    rows = taps[:, 0][taps[:, 0] > num_features + largest] - largest
    return rows if len(rows) else np.zeros(1, dtype=np.int64)


@pytest.mark.parametrize("context", [2, 3])
def test_losses_stay_with_their_labels(context):
    whole, shares = shares_of(mixed_samples(), context)
    found = []
    for rank, part in enumerate(shares):
        rows = rows_of_rank(whole.cu_seqlens, rank, context)
        found += zip(
            rows[part.loss_rows].tolist(), part.loss_labels, part.loss_samples, strict=True
        )
        assert np.array_equal(part.sample_loss_tokens, whole.sample_loss_tokens)
    expected = zip(whole.loss_rows.tolist(), whole.loss_labels, whole.loss_samples, strict=True)
    assert sorted(found) == sorted(expected)
    assert [part.counts_samples for part in shares] == [True] + [False] * (context - 1)
    counts = np.bincount(whole.loss_samples, minlength=whole.num_samples)
    assert np.array_equal(whole.sample_loss_tokens, counts)


def test_padding_of_samples_moves_nothing_else():
    plain = collate(mixed_samples(), SETTINGS)
    wide = collate(mixed_samples(), SETTINGS, sequence_multiple=8)
    assert (np.diff(wide.cu_seqlens) % 8 == 0).all()
    assert wide.num_rows == plain.num_rows
    for before, after in zip(range(plain.num_samples), range(wide.num_samples), strict=True):
        start, end = plain.cu_seqlens[before : before + 2]
        first = wide.cu_seqlens[after]
        assert np.array_equal(wide.weights[first : first + end - start], plain.weights[start:end])
        assert not wide.weights[first + end - start : wide.cu_seqlens[after + 1]].any()
    shift = wide.cu_seqlens[:-1][wide.loss_samples] - plain.cu_seqlens[:-1][plain.loss_samples]
    assert np.array_equal(wide.loss_rows, plain.loss_rows + shift)


def test_a_pack_without_images_sends_one_unused_row():
    _, shares = shares_of([tiny_sample([], 9, 1)], 2, rows=16)
    assert [part.exchange.send_counts for part in shares] == [(1, 1), (0, 0)]
    assert all(len(part.tiles) == 1 for part in shares)
    assert len(shares[0].position_ids) == 8

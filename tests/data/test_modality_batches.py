"""Global batches of one modality."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_llava.data.modality_batches import order_of_batches
from megatron_llava.data.packing import Balance, plan_epoch

counts = st.lists(st.integers(0, 40), min_size=1, max_size=3).filter(any)


@given(counts, st.integers(1, 12), st.integers(0, 50), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_batches_are_pure_but_at_the_ends(counts, batch, first_pack, seed):
    order = order_of_batches(counts, batch, first_pack, seed)
    assert sorted(order.tolist()) == list(range(sum(counts)))
    of_pack = np.repeat(np.arange(len(counts)), counts)[order]
    head = min(-first_pack % batch, len(order))
    inner = of_pack[head : head + (len(order) - head) // batch * batch].reshape(-1, batch)
    pure = (inner == inner[:, :1]).all(1)
    # What fills no batch comes behind those that do, and is less than a batch of each modality,
    # but for one that was taken apart.
    assert pure[: np.count_nonzero(pure)].all() or not pure.any()
    assert np.count_nonzero(~pure) <= len(counts)
    assert len(inner) - np.count_nonzero(~pure) >= sum(n // batch for n in counts) - 1
    assert np.array_equal(order, order_of_batches(counts, batch, first_pack, seed))


def samples(number: int = 500):
    generator = np.random.default_rng(0)
    lengths = generator.integers(10, 200, number)
    return lengths, np.arange(number) % 3 > 0


@pytest.mark.proves("C12")
@pytest.mark.parametrize("balance", [None, Balance(group=12, row=1, attended=1, view=1)])
@pytest.mark.parametrize("first_pack", [0, 5])
def test_a_plan_has_every_sample_once_in_packs_of_one_modality(balance, first_pack):
    lengths, with_images = samples()
    how = {"seed": 3, "epoch": 1, "balance": balance, "first_pack": first_pack}
    plan = plan_epoch(lengths, 400, **how, with_images=with_images, batch=8)
    assert sorted(plan.sample_ids.tolist()) == list(range(500))
    kinds = [set(with_images[plan.pack(number)].tolist()) for number in range(len(plan))]
    assert all(len(kind) == 1 for kind in kinds)
    rows = [int(lengths[plan.pack(number)].sum()) for number in range(len(plan))]
    assert rows == plan.pack_rows.tolist() and max(rows) <= 400
    head = -first_pack % 8
    batches = [set.union(*kinds[n : n + 8]) for n in range(head, len(plan) - 7, 8)]
    pure = [len(batch) == 1 for batch in batches]
    assert sum(pure) >= len(pure) - 1 and {frozenset(batch) for batch in batches[:4]}
    order = [batch.pop() for batch, alone in zip(batches, pure, strict=True) if alone]
    assert order != sorted(order) and order != sorted(order, reverse=True)
    assert plan.fill_fraction(400) > 0.9


def test_one_modality_alone_is_only_put_in_batches():
    lengths, _ = samples()
    everything = plan_epoch(
        lengths, 400, seed=3, epoch=0, with_images=np.ones(500, dtype=bool), batch=8
    )
    assert sorted(everything.sample_ids.tolist()) == list(range(500))

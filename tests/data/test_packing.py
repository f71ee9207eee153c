from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.data.packing import (
    Balance,
    balanced_order,
    fitting_samples,
    plan_epoch,
    sample_sizes,
    wait_fraction,
)
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX
from megatron_llava.vision.token_layout import number_of_tokens, number_of_views


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    spare=st.integers(0, 60),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 5),
    window=st.integers(0, 70),
    shuffle=st.booleans(),
)
def test_every_sample_once_and_no_pack_too_full(lengths, spare, seed, epoch, window, shuffle):
    array, capacity = np.array(lengths, np.int64), max(lengths) + spare
    options = {"seed": seed, "epoch": epoch, "window": window, "shuffle": shuffle}
    plan = plan_epoch(array, capacity, **options)
    assert plan.sample_ids.dtype == plan.pack_offsets.dtype == plan.pack_rows.dtype == np.int64
    assert sorted(plan.sample_ids.tolist()) == list(range(len(lengths)))
    packs = [plan.pack(number) for number in range(len(plan))]
    assert sum(len(pack) for pack in packs) == len(lengths) and all(len(pack) for pack in packs)
    assert plan.pack_rows.tolist() == [array[pack].sum() for pack in packs]
    assert plan.pack_rows.max() <= capacity
    assert 0 < plan.fill_fraction(capacity) <= 1
    again = plan_epoch(array, capacity, **options)
    np.testing.assert_array_equal(again.sample_ids, plan.sample_ids)
    np.testing.assert_array_equal(again.pack_offsets, plan.pack_offsets)


def test_short_samples_of_all_lengths_share_a_pack():
    lengths = np.repeat(np.array([10, 20, 30], np.int64), 400)
    plan = plan_epoch(lengths, 600, seed=0, epoch=0, window=0)
    assert all(len(set(lengths[plan.pack(number)])) == 3 for number in range(len(plan) - 1))
    assert plan.fill_fraction(600) > 0.98


def test_unshuffled_windows_keep_the_order_of_the_store():
    lengths = np.full(20, 3, np.int64)
    plan = plan_epoch(lengths, 6, seed=0, epoch=0, window=4, shuffle=False)
    assert plan.sample_ids.tolist() == list(range(20))


def test_seed_and_epoch_change_the_order():
    lengths = np.arange(1, 101, dtype=np.int64)
    plans = [
        plan_epoch(lengths, 100, seed=seed, epoch=epoch, window=32).sample_ids.tolist()
        for seed, epoch in ((1, 0), (1, 1), (2, 0), (0, 1))
    ]
    assert len({tuple(plan) for plan in plans}) == 4


PLAN_OF_SEED_7 = [[4], [3, 5], [1, 2], [0]]


def test_plan_is_the_same_everywhere():
    """A resumed run may meet another numpy: what a seed means is part of the format."""
    plan = plan_epoch(np.array([5, 3, 4, 2, 6, 1], np.int64), 7, seed=7, epoch=3, window=4)
    packs = [plan.pack(number).tolist() for number in range(len(plan))]
    assert packs == PLAN_OF_SEED_7


def test_packs_are_not_in_order_of_length():
    lengths = np.random.default_rng(0).integers(1, 100, 2000)
    plan = plan_epoch(lengths, 400, seed=0, epoch=0, window=500)
    longest = np.array([lengths[plan.pack(number)].max() for number in range(len(plan))])
    places = np.arange(len(plan))
    assert abs(np.corrcoef(places, longest)[0, 1]) < 0.2
    assert plan.fill_fraction(400) > 0.98


def test_sizes_are_tokens_and_views(store, image_settings):
    lengths, views = sample_sizes(store, image_settings)
    assert lengths.dtype == views.dtype == np.int64
    for index in range(len(store)):
        sample = store.load(index, with_images=False)
        single = len(sample.image_sizes) > 1
        expected = np.count_nonzero(sample.token_ids != IMAGE_TOKEN_INDEX) + sum(
            number_of_tokens(size, image_settings, single_view=single)
            for size in sample.image_sizes
        )
        assert lengths[index] == expected
        assert views[index] == sum(
            number_of_views(size, image_settings, single_view=single) for size in sample.image_sizes
        )
    assert len(set(lengths.tolist())) > 10


def test_image_without_tokens_names_its_sample(store, image_settings):
    # One patch per tile: the 20x9 image keeps nothing after unpadding and shrinking.
    settings = replace(
        image_settings,
        patch_size=8,
        grid_pinpoints=((72, 8),),
        mm_patch_merge_type="spatial_unpad_nobase",
        image_aspect_ratio="anyres_max_1",
    )
    with pytest.raises(ValueError) as error:
        sample_sizes(store, settings)
    message = str(error.value)
    assert message.startswith(f"store {store.prefix}: sample ") and "\n" not in message
    assert "too thin" in message


def log_normal_lengths(count, capacity, sigma=0.7):
    drawn = np.exp(np.random.default_rng(0).normal(7.0, sigma, count))
    return np.clip(drawn.astype(np.int64), 1, capacity)


def test_packs_are_nearly_full_without_windows():
    lengths = log_normal_lengths(50_000, 8192)
    assert plan_epoch(lengths, 8192, seed=0, epoch=0).fill_fraction(8192) > 0.9995
    assert plan_epoch(lengths, 8192, seed=0, epoch=0, window=1024).fill_fraction(8192) > 0.99


def test_views_are_bounded():
    lengths = log_normal_lengths(5000, 8192)
    views = np.minimum(lengths // 576, 12)
    plan = plan_epoch(lengths, 8192, seed=0, epoch=0, views=views, max_views=12)
    of_pack = np.add.reduceat(views[plan.sample_ids], plan.pack_offsets[:-1])
    assert of_pack.max() == 12 and sorted(plan.sample_ids.tolist()) == list(range(5000))
    with pytest.raises(ValueError, match="sample 1 has 3 views, more than --max-views-per-pack 2"):
        fitting_samples(np.full(3, 5), 9, name="s", views=np.array([1, 3, 2]), max_views=2)


@pytest.mark.proves("C12")
def test_balanced_packs_are_the_same_packs():
    lengths = log_normal_lengths(20_000, 8192, sigma=1.0)
    views = lengths // 576
    balance = Balance(group=16, row=1000, attended=1, view=10_000)
    options = {"seed": 3, "epoch": 1, "views": views}
    plain = plan_epoch(lengths, 8192, **options)
    plan = plan_epoch(lengths, 8192, **options, balance=balance, first_pack=5)

    def packs(plan):
        return [plan.pack(number).tolist() for number in range(len(plan))]

    def costs(plan):
        found = []
        for number in range(len(plan)):
            ids = plan.pack(number)
            rows = lengths[ids]
            found.append(1000 * rows.sum() + (rows * rows).sum() + 10_000 * views[ids].sum())
        return np.array(found)

    assert sorted(packs(plan)) == sorted(packs(plain)) and packs(plan) != packs(plain)
    np.testing.assert_array_equal(plan.pack_rows, [lengths[pack].sum() for pack in packs(plan)])
    # Runs begin where the run's pack number is a multiple of the group.
    head = -5 % 16
    assert wait_fraction(costs(plan)[head:], 16) < wait_fraction(costs(plain)[head:], 16) / 8
    assert wait_fraction(costs(plan)[head:], 4) < 0.01


@pytest.mark.proves("C12")
@given(st.integers(0, 400), st.integers(1, 20), st.integers(0, 50), st.integers(0, 2**60))
def test_a_balanced_order_keeps_every_pack(count, group, first_pack, seed):
    costs = np.random.default_rng(seed).integers(0, 1000, count)
    order = balanced_order(costs, group, first_pack, seed)
    assert sorted(order.tolist()) == list(range(count))
    head = -first_pack % group
    assert order[:head].tolist() == list(range(min(head, count)))


def test_too_long_samples():
    lengths = np.array([5, 12, 7, 11, 10], np.int64)
    assert fitting_samples(lengths, 12, name="s").tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError) as error:
        fitting_samples(lengths, 10, name="s", max_bad_records=1)
    assert str(error.value) == (
        "store s: sample 1 has 12 positions, more than --seq-length 10 (2 of 5 samples have, the "
        "longest has 12): raise --seq-length, lower the image resolution, shorten their text with "
        "--oversize-samples truncate (an image is never cut), or leave them out with "
        "--max-bad-records 2"
    )
    assert fitting_samples(lengths, 10, name="s", max_bad_records=2).tolist() == [0, 2, 4]
    with pytest.raises(ValueError, match="store s: no sample fits into --seq-length 4"):
        fitting_samples(lengths, 4, name="s", max_bad_records=5)

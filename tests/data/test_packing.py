from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.data.packing import fitting_samples, plan_epoch, sample_lengths
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX
from megatron_llava.vision.token_layout import number_of_tokens


def first_fit_long_ones_first(lengths, capacity):
    """The textbook loop: sample ids of each pack."""
    packs, room = [], []
    is_long = [8 * length > capacity for length in lengths]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i] * is_long[i])
    for index in order:
        fitting = [pack for pack, left in enumerate(room) if left >= lengths[index]]
        if not fitting:
            fitting = [len(packs)]
            packs.append([])
            room.append(capacity)
        number = fitting[0]
        packs[number].append(index)
        room[number] -= lengths[index]
    return packs


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    spare=st.integers(0, 60),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 5),
    window=st.integers(1, 70),
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


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(50, 120))
def test_first_fit_of_one_window(lengths, capacity):
    plan = plan_epoch(
        np.array(lengths, np.int64), capacity, seed=0, epoch=0, window=100, shuffle=False
    )
    packs = [plan.pack(number).tolist() for number in range(len(plan))]
    assert packs == first_fit_long_ones_first(lengths, capacity)


def test_short_samples_of_all_lengths_share_a_pack():
    lengths = np.repeat(np.array([10, 20, 30], np.int64), 400)
    plan = plan_epoch(lengths, 600, seed=0, epoch=0, window=4096)
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


def test_plan_is_the_same_everywhere():
    """A resumed run may meet another numpy: what a seed means is part of the format."""
    plan = plan_epoch(np.array([5, 3, 4, 2, 6, 1], np.int64), 7, seed=7, epoch=3, window=4)
    packs = [plan.pack(number).tolist() for number in range(len(plan))]
    assert packs == [[2, 3], [0], [1], [4, 5]]


def test_packs_are_not_in_order_of_length():
    lengths = np.random.default_rng(0).integers(1, 100, 2000)
    plan = plan_epoch(lengths, 400, seed=0, epoch=0, window=500)
    longest = np.array([lengths[plan.pack(number)].max() for number in range(len(plan))])
    places = np.arange(len(plan))
    assert abs(np.corrcoef(places, longest)[0, 1]) < 0.2
    assert plan.fill_fraction(400) > 0.98


def test_lengths_are_text_and_visual_tokens(store, image_settings):
    lengths = sample_lengths(store, image_settings)
    assert lengths.dtype == np.int64
    for index in range(len(store)):
        sample = store.load(index, with_images=False)
        single = len(sample.image_sizes) > 1
        expected = np.count_nonzero(sample.token_ids != IMAGE_TOKEN_INDEX) + sum(
            number_of_tokens(size, image_settings, single_view=single)
            for size in sample.image_sizes
        )
        assert lengths[index] == expected
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
        sample_lengths(store, settings)
    message = str(error.value)
    assert message.startswith(f"store {store.prefix}: sample ") and "\n" not in message
    assert "too thin" in message


def test_too_long_samples():
    lengths = np.array([5, 12, 7, 11, 10], np.int64)
    assert fitting_samples(lengths, 12, name="s").tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError) as error:
        fitting_samples(lengths, 10, name="s", max_bad_records=1)
    assert str(error.value) == (
        "store s: sample 1 has 12 positions, more than --seq-length 10 (2 of 5 samples have, the "
        "longest has 12): raise --seq-length, lower the image resolution, or leave them out with "
        "--max-bad-records 2"
    )
    assert fitting_samples(lengths, 10, name="s", max_bad_records=2).tolist() == [0, 2, 4]
    with pytest.raises(ValueError, match="store s: no sample fits into --seq-length 4"):
        fitting_samples(lengths, 4, name="s", max_bad_records=5)

"""--drop-last: every global batch is of one epoch, and what fills none is left out."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_llava.data.loader import PackedDataLoader
from megatron_llava.data.packing import Balance
from megatron_llava.data.sampled_packs import sampled_packs
from megatron_llava.data.schedule import TrainingSchedule

pytestmark = pytest.mark.proves("C13")
EPOCHS = 3


@pytest.fixture
def schedule(store, image_settings, tmp_path):
    def make(**changes):
        options = {"seed": 3, "capacity": 320, "cache_path": tmp_path, **changes}
        return TrainingSchedule(store, image_settings, options.pop("capacity"), **options)

    return make


def packs(schedule, begin, end):
    return [schedule.pack(index).tolist() for index in range(begin, end)]


@given(
    capacity=st.integers(215, 700),
    batch=st.integers(1, 9),
    seed=st.integers(0, 2**40),
    window=st.sampled_from([0, 1, 16]),
    group=st.sampled_from([None, 2, 3, 8]),
    by_modality=st.booleans(),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_batch_is_of_one_epoch(schedule, capacity, batch, seed, window, group, by_modality):
    balance = None if group is None else Balance(group=group, row=10, attended=1, view=100)
    made = schedule(
        capacity=capacity,
        drop_last=batch,
        seed=seed,
        window=window,
        balance=balance,
        modality_batch=batch if by_modality else None,
    )
    begin = 0
    for epoch in range(EPOCHS):
        planned, taken = len(made.plan(epoch)), made.packs_of(epoch)
        assert taken % batch == 0 and 0 <= planned - taken < batch
        assert all(made.locate(begin + number)[0] == epoch for number in range(taken))
        expected = [made.plan(epoch).pack(number).tolist() for number in range(taken)]
        assert packs(made, begin, begin + taken) == expected, "every sample of the store fits"
        rows = [made.pack_rows(begin + number) for number in range(taken)]
        assert rows == made.plan(epoch).pack_rows[:taken].tolist()
        begin += taken
    following, place = made.locate(begin)
    assert following >= EPOCHS and place == 0


def test_without_it_batches_go_on_into_the_next_epoch(schedule):
    """Packs of an epoch are the same; only the last of them are missing."""
    without, made = schedule(), schedule(drop_last=4)
    planned, taken = len(without.plan(0)), made.packs_of(0)
    assert planned % 4 and taken == planned - planned % 4
    assert packs(made, 0, taken) == packs(without, 0, taken)
    assert packs(made, taken, taken + 4) == packs(without, planned, planned + 4)
    assert without.packs_of(0) == planned


def test_other_samples_are_left_out_in_every_epoch(schedule):
    made = schedule(drop_last=8, balance=Balance(group=2, row=10, attended=1, view=100))
    left = []
    for epoch in range(8):
        plan = made.plan(epoch)
        left.append(frozenset(plan.sample_ids[plan.pack_offsets[made.packs_of(epoch)] :].tolist()))
    assert len(set(left)) > 1 and all(left)
    assert not frozenset.intersection(*left)


@pytest.mark.parametrize("batch", [2, 4])
def test_batches_of_a_modality_but_for_the_last_of_an_epoch(schedule, store, batch):
    made = schedule(drop_last=batch, modality_batch=batch, capacity=215)
    with_images = np.diff(store.image_offsets) > 0
    begin = 0
    for epoch in range(EPOCHS):
        taken = made.packs_of(epoch)
        kinds = [set(with_images[made.pack(begin + number)].tolist()) for number in range(taken)]
        batches = [set.union(*kinds[first : first + batch]) for first in range(0, taken, batch)]
        assert all(len(kind) == 1 for kind in batches[:-1])
        begin += taken


def test_an_epoch_of_less_than_a_batch_is_refused(schedule):
    planned = len(schedule().plan(0))
    assert schedule(drop_last=planned).packs_of(0) == planned
    with pytest.raises(ValueError) as error:
        schedule(drop_last=planned + 1)
    message = str(error.value)
    assert f"an epoch has {planned} packs" in message and "\n" not in message
    assert f"--global-batch-size {planned + 1}" in message
    assert f"give a --global-batch-size of {planned} or less, or drop --drop-last" in message


def test_an_epoch_of_a_few_packs_less_is_left_out_whole(schedule):
    """The order of the samples decides by a pack or two how many there are."""
    plans = schedule(capacity=333, window=4)
    planned = [len(plans.plan(epoch)) for epoch in range(12)]
    batch = planned[0]
    assert 0 < sum(number < batch for number in planned) < 12
    made = schedule(capacity=333, window=4, drop_last=batch)
    filled = [epoch for epoch, number in enumerate(planned) if number >= batch]
    for step, epoch in enumerate(filled):
        places = [made.locate(step * batch + number) for number in range(batch)]
        assert places == [(epoch, number) for number in range(batch)]


def test_epochs_that_never_fill_a_batch_again_end_in_an_error(schedule, monkeypatch):
    made = schedule(drop_last=4)
    monkeypatch.setattr(made, "packs_of", lambda epoch: 0 if epoch else 4)
    assert made.locate(3) == (0, 3)
    with pytest.raises(ValueError, match="--drop-last leaves out all of them"):
        made.locate(4)


def test_a_position_belongs_to_the_flag_and_the_batch(schedule):
    prints = {schedule(**how).fingerprint for how in ({}, {"drop_last": 2}, {"drop_last": 4})}
    assert len(prints) == 3
    assert schedule(drop_last=None).fingerprint == schedule().fingerprint


@pytest.mark.parametrize("consumed", [8, 16])
def test_a_run_goes_on_within_an_epoch_at_another_number_of_ranks(
    schedule, store, image_settings, consumed
):
    def loader(**options):
        return PackedDataLoader(store, image_settings, schedule(drop_last=4), **options)

    taken = schedule(drop_last=4).packs_of(0)
    assert consumed < taken < consumed + 16, "over an epoch's end"
    whole = [batch.token_ids.tolist() for batch in islice(loader(), consumed + 16)]
    state = {"consumed_packs": consumed, "schedule": schedule(drop_last=4).fingerprint}
    ranks = [loader(data_parallel_rank=rank, data_parallel_size=2) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(state)
    streams = [iter(rank) for rank in ranks]
    resumed = [next(streams[number % 2]).token_ids.tolist() for number in range(16)]
    assert resumed == whole[consumed:]
    plain = PackedDataLoader(store, image_settings, schedule())
    with pytest.raises(ValueError, match="--drop-last with its --global-batch-size"):
        plain.load_state_dict(state)


def test_averages_are_of_packs_that_are_taken(schedule, store, image_settings):
    made = schedule(drop_last=8)
    seen = sum(batch.num_samples for batch in sampled_packs(store, image_settings, made))
    assert seen == made.plan(0).pack_offsets[made.packs_of(0)] < len(store)

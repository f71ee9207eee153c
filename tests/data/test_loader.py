import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_llava.data import loader as loader_module
from megatron_llava.data.collate import collate
from megatron_llava.data.loader import PackedDataLoader
from megatron_llava.data.packed_batch import PackedBatch
from megatron_llava.data.packing import sample_sizes
from megatron_llava.data.schedule import EvaluationSchedule, TrainingSchedule
from megatron_llava.data.store import Store
from megatron_llava.data.workers import lost_worker

CAPACITY = 320
READ_AHEAD = 2
"""Batches that a worker of torch's DataLoader has ready."""


def assert_equal(a: PackedBatch, b: PackedBatch):
    for field in fields(PackedBatch):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


@pytest.fixture
def schedule(store, image_settings, tmp_path):
    def make(**changes):
        options = {"seed": 3, "window": 16, "cache_path": tmp_path, **changes}
        return TrainingSchedule(store, image_settings, options.pop("capacity", CAPACITY), **options)

    return make


@pytest.fixture
def loader(store, image_settings, schedule):
    def make(**options):
        return PackedDataLoader(
            store, image_settings, options.pop("schedule", None) or schedule(), **options
        )

    return make


def take(loader, count):
    return list(islice(loader, count))


def all_ranks(make, size, count, state=None):
    """The next `count` packs in their global order, as `size` ranks take them."""
    ranks = [make(data_parallel_rank=rank, data_parallel_size=size) for rank in range(size)]
    for rank in ranks:
        if state is not None:
            rank.load_state_dict(state)
    streams = [iter(rank) for rank in ranks]
    packs = [next(streams[index % size]) for index in range(count)]
    states = [rank.state_dict() for rank in ranks]
    assert all(one == states[0] for one in states)
    return packs, states[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_outlive_a_signal_to_every_process(loader, number):
    """Slurm and terminals send it to all of them, and the trainer still has a step to end."""
    others = set(multiprocessing.active_children())
    batches = iter(loader(num_workers=1))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - others
    os.kill(worker.pid, number)
    for _ in range(2 * READ_AHEAD):
        next(batches)
    assert worker.is_alive()


PROGRAM = """
    import os, sys, time
    sys.path.insert(0, {tests!r})
    from torch.utils.data import DataLoader
    from megatron_llava.data.workers import begin_worker, patient

    class Slow:
        def __len__(self):
            return 100
        def __getitem__(self, index):
            return os.getpid()

    def batches():
        loader = DataLoader(
            Slow(), batch_size=None, num_workers=2, worker_init_fn=begin_worker,
            multiprocessing_context="fork",
        )
        yield from patient(loader, print)

    stream = batches()
    print(next(stream), next(stream), flush=True)
    {end}
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("raise RuntimeError('broken')", 1),
        ("os.kill(os.getpid(), 9)", -9),
        ("pass  # the end of the program, with a stream that was not read to its end", 0),
    ],
)
def test_no_worker_outlives_a_trainer_that_breaks(end, code):
    """Workers ignore SIGTERM, which is how python ends them: it waited for them for ever."""
    program = textwrap.dedent(PROGRAM.format(tests=str(Path(__file__).parents[1]), end=end))
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert process.returncode == code
    pids = process.stdout.split()
    deadline = time.monotonic() + 20
    while any(map(runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2 and not any(map(runs, pids))


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class SlowStore(Store):
    """Takes its time over every sample."""

    def load(self, index, *, with_images=True):
        time.sleep(1.0)
        return super().load(index, with_images=with_images)


def test_a_late_worker_is_named(store_prefix, image_settings, schedule, monkeypatch):
    monkeypatch.setattr(loader_module, "_SECONDS_OF_PATIENCE", 0.4)
    made, slow, said = schedule(), SlowStore(store_prefix), []
    options = {"num_workers": 2, "with_pixels": False, "data_parallel_rank": 1}
    options |= {"data_parallel_size": 2, "say": said.append}
    for batch, pack in zip(
        take(PackedDataLoader(slow, image_settings, made, **options), 2), (1, 3), strict=True
    ):
        samples = [slow.load(index, with_images=False) for index in made.pack(pack).tolist()]
        assert_equal(batch, collate(samples, image_settings, with_pixels=False))
    ids = ", ".join(map(str, made.pack(1)))
    assert said[0] == (
        "data-parallel rank 1: waited 0.4 s for loader worker 0 of 2, which reads pack 1: store "
        f"{store_prefix}: samples {ids}"
    )
    with pytest.raises(ValueError) as error:
        take(PackedDataLoader(slow, image_settings, made, timeout_minutes=0.6 / 60, **options), 1)
    assert str(error.value).startswith(said[0].replace("0.4", "0.8"))
    assert "; --data-timeout-minutes 0.01 ends the run" in str(error.value)


def test_a_lost_worker_is_one_line(loader):
    others = set(multiprocessing.active_children())
    batches = iter(loader(num_workers=1))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - others
    with pytest.raises(RuntimeError) as error:
        os.kill(worker.pid, signal.SIGKILL)
        for _ in range(2 * READ_AHEAD + 2):
            next(batches)
    message = lost_worker(error.value)
    assert message.startswith(f"a loader worker (process {worker.pid}) ")
    assert message.endswith("lower --num-workers; run the same command again")
    assert lost_worker(RuntimeError("shapes do not match")) is None


@pytest.mark.proves("C13")
def test_every_epoch_has_every_sample_once(schedule, store, image_settings):
    made = schedule()
    lengths, _ = sample_sizes(store, image_settings)
    first, second = len(made.plan(0)), len(made.plan(1))
    assert first > 3
    for packs in (range(first), range(first, first + second)):
        ids = np.concatenate([made.pack(index) for index in packs])
        assert sorted(ids.tolist()) == list(range(len(store)))
    for index in range(first + second + 2):
        assert made.pack_rows(index) == lengths[made.pack(index)].sum() <= CAPACITY
    assert [made.locate(i) for i in (0, first - 1, first)] == [(0, 0), (0, first - 1), (1, 0)]
    assert made.pack(0).tolist() != made.pack(first).tolist()


def test_batches_follow_the_schedule(loader, store, image_settings):
    made = loader(pad_multiple=8)
    for index, batch in enumerate(take(made, 5)):
        samples = [store.load(i) for i in made.schedule.pack(index).tolist()]
        assert_equal(batch, collate(samples, image_settings, pad_multiple=8))
        assert batch.num_rows == made.pack_rows(index)
    assert made.consumed_packs == 5


@pytest.mark.proves("C13")
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_batches(loader, workers):
    count = len(loader().schedule.plan(0)) + 3  # on into the next epoch
    for a, b in zip(take(loader(), count), take(loader(num_workers=workers), count), strict=True):
        assert_equal(a, b)


@pytest.mark.proves("C13")
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_goes_on_with_the_next_batch(loader, workers):
    expected = take(loader(), 9)
    first = loader(num_workers=workers)
    stream = iter(first)
    for index in range(4):
        assert_equal(next(stream), expected[index])
    state = first.state_dict()
    assert state["consumed_packs"] == 4, "batches read ahead were counted"
    second = loader(num_workers=workers)
    second.load_state_dict(state)
    for a, b in zip(take(second, 5), expected[4:], strict=True):
        assert_equal(a, b)


def test_data_parallel_size_may_change(loader):
    expected = take(loader(), 16)
    first, state = all_ranks(loader, 2, 4)
    assert state["consumed_packs"] == 4
    second, state = all_ranks(loader, 4, 8, state)
    third, state = all_ranks(loader, 1, 4, state)
    assert state["consumed_packs"] == 16
    for a, b in zip(first + second + third, expected, strict=True):
        assert_equal(a, b)


def test_skipping_reads_nothing(loader, monkeypatch):
    state = {"consumed_packs": 1000, "schedule": loader().schedule.fingerprint}
    reads = []
    original = Store.load
    monkeypatch.setattr(Store, "load", lambda *a, **b: reads.append(a[1]) or original(*a, **b))
    made = loader()
    made.load_state_dict(state)
    take(made, 1)
    assert reads == made.schedule.pack(1000).tolist()


def test_state_of_other_packs_is_refused(loader, schedule, store, image_settings):
    state = loader().state_dict()
    loader().load_state_dict(state)
    others = [schedule(seed=4), schedule(window=8), schedule(capacity=CAPACITY + 1)]
    others.append(
        TrainingSchedule(
            store, replace(image_settings, unpad_round="hf"), CAPACITY, seed=3, window=16
        )
    )
    for other in others:
        with pytest.raises(ValueError, match=r"\(pack 0\) was saved with another store, .*--seed"):
            loader(schedule=other).load_state_dict(state)


def test_dropout_does_not_depend_on_the_loader(loader):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    take(loader(), 1)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_without_pixels(loader):
    for a, b in zip(take(loader(), 4), take(loader(with_pixels=False), 4), strict=True):
        assert b.tiles is None
        assert_equal(replace(a, tiles=None), b)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_one_line(store_prefix, image_settings, tmp_path, workers):
    for path in store_prefix.parent.glob("store*"):
        if path.suffix in (".json", ".bin", ".idx"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    images = tmp_path / "store_images.bin"
    images.write_bytes(b"\0" * images.stat().st_size)
    store = Store(tmp_path / "store")
    made = PackedDataLoader(
        store,
        image_settings,
        TrainingSchedule(store, image_settings, CAPACITY, seed=3),
        num_workers=workers,
    )
    with pytest.raises(ValueError) as error:
        take(made, 20)
    message = str(error.value)
    assert message.startswith(f"store {tmp_path}/store: sample ") and "\n" not in message
    assert "cannot read an image" in message


def test_too_long_samples_are_dropped_up_to_a_limit(store, image_settings, tmp_path):
    lengths, _ = sample_sizes(store, image_settings)
    capacity = int(np.sort(lengths)[-3])
    too_long = np.flatnonzero(lengths > capacity)
    assert len(too_long) > 0
    with pytest.raises(ValueError, match=f"more than --seq-length {capacity} "):
        TrainingSchedule(store, image_settings, capacity, seed=0, cache_path=tmp_path)
    made = TrainingSchedule(
        store, image_settings, capacity, seed=0, max_bad_records=2, cache_path=tmp_path
    )
    assert made.num_dropped == len(too_long)
    ids = np.concatenate([made.pack(index) for index in range(len(made.plan(0)))])
    assert sorted(ids.tolist()) == np.flatnonzero(lengths <= capacity).tolist()


def test_plans_lie_beside_the_store_by_default(store_prefix, image_settings, tmp_path):
    for path in store_prefix.parent.glob("store*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    TrainingSchedule(Store(tmp_path / "store"), image_settings, CAPACITY, seed=11).pack(0)
    assert len(list(tmp_path.glob("store_plan_*.npz"))) == 1


@pytest.mark.parametrize("size", [1, 2, 3])
def test_evaluation_takes_every_sample_once(store, image_settings, size):
    microbatches = 2
    made = EvaluationSchedule(
        store, image_settings, CAPACITY, packs_per_step=size * microbatches, window=16
    )
    assert made.num_packs % (size * microbatches) == 0
    ids = np.concatenate([made.pack(index) for index in range(made.num_packs)])
    assert sorted(ids.tolist()) == list(range(len(store)))
    ranks = [
        list(
            PackedDataLoader(
                store,
                image_settings,
                made,
                data_parallel_rank=rank,
                data_parallel_size=size,
                pad_multiple=4,
            )
        )
        for rank in range(size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    assert sum(batch.num_samples for batches in ranks for batch in batches) == len(store)
    labels = sum(len(batch.loss_labels) for batches in ranks for batch in batches)
    assert labels == store.supervised_counts.sum()
    for index in range(made.num_packs):
        batch = ranks[index % size][index // size]
        assert batch.num_rows == made.pack_rows(index)
        assert batch.num_samples or (len(batch.position_ids) == 4 and len(batch.loss_rows) == 0)
    again = EvaluationSchedule(store, image_settings, CAPACITY, packs_per_step=1, window=16)
    for index in range(again.num_packs):
        assert again.pack(index).tolist() == made.pack(index).tolist()

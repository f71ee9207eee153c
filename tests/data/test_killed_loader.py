"""A killed run resumes from its last saved position at another data parallel size, and the epoch
still has every sample once."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from megatron_llava.config.image import ImageSettings
from megatron_llava.data.loader import PackedDataLoader
from megatron_llava.data.packed_batch import PackedBatch
from megatron_llava.data.packing import Balance
from megatron_llava.data.preprocess import preprocess
from megatron_llava.data.schedule import TrainingSchedule
from megatron_llava.data.store import Store
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX

TRIALS = 20
SAMPLES = 400
MICROBATCHES = 2
STEPS_PER_SAVE = 3


@pytest.fixture(scope="module")
def numbered_store(records, make_settings, tmp_path_factory) -> Path:
    """Every answer is another one, so that a batch says which samples it holds."""
    made = []
    for number in range(SAMPLES):
        record = dict(records[number % len(records)])
        question = record["conversations"][0]
        record["conversations"] = [question, {"from": "gpt", "value": f"It is {number}."}]
        made.append(record)
    settings = make_settings(made, tmp_path_factory.mktemp("numbered"))
    preprocess(settings)
    return settings.output_prefix


def answer_of(tokens: np.ndarray, mask: np.ndarray) -> str:
    return json.dumps(tokens[(mask == 1) & (tokens != IMAGE_TOKEN_INDEX)].tolist())


def answers(batch: PackedBatch) -> list[str]:
    """The trained tokens of each sample of a batch."""
    return [
        json.dumps(batch.loss_labels[batch.loss_samples == sample].tolist())
        for sample in range(batch.num_samples)
    ]


def schedule_of(store: Store, settings: ImageSettings, folder: Path) -> TrainingSchedule:
    balance = Balance(group=8, row=10, attended=1, view=100)
    return TrainingSchedule(store, settings, 320, seed=7, balance=balance, cache_path=folder)


def consume(prefix: Path, settings: ImageSettings, folder: Path, size: int, end: int) -> None:
    """Take steps of all ranks until the pack `end`; save the position now and then."""
    store = Store(prefix)
    schedule = schedule_of(store, settings, folder)
    ranks = [
        PackedDataLoader(
            store,
            settings,
            schedule,
            data_parallel_rank=rank,
            data_parallel_size=size,
            num_workers=rank % 2,
        )
        for rank in range(size)
    ]
    state_file = folder / "state.json"
    if state_file.exists():
        for rank in ranks:
            rank.load_state_dict(json.loads(state_file.read_text()))
    streams = [iter(rank) for rank in ranks]
    step = 0
    with (folder / "log.jsonl").open("a") as log:
        while ranks[0].consumed_packs < end:
            for _ in range(MICROBATCHES):
                first = ranks[0].consumed_packs
                for rank, stream in enumerate(streams):
                    log.write(json.dumps([first + rank, answers(next(stream))]) + "\n")
            log.flush()
            step += 1
            if step % STEPS_PER_SAVE == 0:
                written = folder / "state.partial"
                written.write_text(json.dumps(ranks[-1].state_dict()))
                os.replace(written, state_file)


def complete_lines(folder: Path) -> list[list]:
    path = folder / "log.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def forget_what_was_not_saved(folder: Path) -> None:
    """A resumed run repeats the steps after its checkpoint: their first pass does not count."""
    state = folder / "state.json"
    saved = json.loads(state.read_text())["consumed_packs"] if state.exists() else 0
    kept = [line for line in complete_lines(folder) if line[0] < saved]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))


@pytest.mark.parametrize("trial", range(TRIALS))
def test_every_sample_once_whenever_it_is_killed(numbered_store, image_settings, tmp_path, trial):
    store = Store(numbered_store)
    schedule = schedule_of(store, image_settings, tmp_path)
    packs = len(schedule.plan(0))
    expected = Counter(answer_of(*store.sample(index)) for index in range(len(store)))
    assert len(expected) == SAMPLES and packs > 40
    chance = random.Random(trial)
    fork = multiprocessing.get_context("fork")
    sizes, kills = [], 0
    while True:
        sizes.append(chance.choice([size for size in (1, 2, 3, 4) if size not in sizes[-1:]]))
        # On a busy machine it could end before it is killed for the first time.
        end = packs if kills else 10**9
        process = fork.Process(
            target=consume, args=(numbered_store, image_settings, tmp_path, sizes[-1], end)
        )
        before = len(complete_lines(tmp_path))
        process.start()
        wanted = before + chance.randrange(1, packs) if kills < 3 else 10**9
        while process.is_alive() and len(complete_lines(tmp_path)) < wanted:
            time.sleep(0.002)
        assert process.pid is not None
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        forget_what_was_not_saved(tmp_path)
    assert kills > 0
    taken = [line for line in complete_lines(tmp_path) if line[0] < packs]
    assert sorted(line[0] for line in taken) == list(range(packs))
    assert Counter(answer for line in taken for answer in line[1]) == expected

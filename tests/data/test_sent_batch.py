"""Pixels travel through shared memory where there is room, and are the same either way."""

from __future__ import annotations

from dataclasses import fields
from itertools import islice

import numpy as np
import pytest

from megatron_llava.data import sent_batch
from megatron_llava.data.collate import collate
from megatron_llava.data.loader import PackedDataLoader
from megatron_llava.data.packed_batch import PackedBatch
from megatron_llava.data.schedule import TrainingSchedule
from megatron_llava.data.sent_batch import Sent, received, sendable


@pytest.fixture
def batch(store, image_settings) -> PackedBatch:
    return collate([store.load(0)], image_settings)


def test_there_and_back(batch):
    sent = sendable(batch, 2)
    assert isinstance(sent, Sent) and sent.batch.tiles is None
    np.testing.assert_array_equal(received(sent).tiles, batch.tiles)


def test_without_workers_or_pixels_a_batch_stays(batch, store, image_settings):
    assert sendable(batch, 0) is batch
    without = collate([store.load(0)], image_settings, with_pixels=False)
    assert sendable(without, 2) is without
    assert received(without) is without


@pytest.mark.parametrize("free", ["none", "little"])
def test_a_pipe_where_there_is_no_room(batch, monkeypatch, tmp_path, free):
    if free == "none":
        monkeypatch.setattr(sent_batch, "SHARED_MEMORY", str(tmp_path / "absent"))
    else:
        monkeypatch.setattr(sent_batch, "_free", lambda: batch.tiles.nbytes)
    assert sendable(batch, 1) is batch


def test_either_way_the_same_batches(store, image_settings, tmp_path, monkeypatch):
    def batches() -> list[PackedBatch]:
        schedule = TrainingSchedule(store, image_settings, 320, seed=3, cache_path=tmp_path)
        return list(islice(PackedDataLoader(store, image_settings, schedule, num_workers=2), 6))

    shared = batches()
    monkeypatch.setattr(sent_batch, "_free", lambda: 0)
    for one, other in zip(shared, batches(), strict=True):
        for field in fields(PackedBatch):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))

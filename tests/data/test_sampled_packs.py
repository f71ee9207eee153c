"""What packs hold on average, against their batches counted one by one."""

import numpy as np
import pytest

from megatron_llava.data import sampled_packs as module

pytestmark = pytest.mark.usefixtures("cpu_platform")


@pytest.fixture
def make_schedule(store, image_settings, tmp_path):
    from megatron_llava.data.schedule import TrainingSchedule

    def make(capacity=256, **changes):
        values = {"seed": 3, "cache_path": tmp_path, **changes}
        return TrainingSchedule(store, image_settings, capacity, **values)

    return make


def test_sums_over_the_packs_of_an_epoch(store, image_settings, make_schedule):
    from megatron_llava.vision.token_layout import number_of_tokens, number_of_views

    schedule = make_schedule()
    sizes = module.pack_sizes(store, image_settings, schedule)
    views = rows = attended = loss_rows = 0
    for index in range(len(schedule.plan(0))):
        of_pack = 0
        for sample in schedule.pack(index):
            loaded = store.load(int(sample), with_images=False)
            single = len(loaded.image_sizes) > 1
            length = len(loaded.token_ids) - len(loaded.image_sizes)
            for size in loaded.image_sizes:
                of_pack += number_of_views(size, image_settings, single_view=single)
                length += number_of_tokens(size, image_settings, single_view=single)
            rows, attended = rows + length, attended + length**2
            loss_rows += int(loaded.label_mask[1:].sum())
        views += max(of_pack, 1)
    assert sizes.packs == len(schedule.plan(0)) > 1
    assert (sizes.views, sizes.rows, sizes.attended) == (views, rows, attended)
    assert sizes.loss_rows == loss_rows


def test_only_some_packs_are_looked_at(store, image_settings, make_schedule, monkeypatch):
    schedule = make_schedule()
    half = len(schedule.plan(0)) // 2
    monkeypatch.setattr(module, "_PACKS", 2)
    sizes = module.pack_sizes(store, image_settings, schedule)
    assert sizes.packs == 2
    assert sizes.rows == schedule.pack_rows(0) + schedule.pack_rows(half)


def test_every_rank_and_every_resume_finds_the_same(store, image_settings, make_schedule):
    fresh = module.pack_sizes(store, image_settings, make_schedule())
    later = make_schedule()
    later.pack(10 * len(later.plan(0)))
    assert module.pack_sizes(store, image_settings, later) == fresh


def test_a_pack_without_images_or_loss_still_runs_one_of_each(image_settings, store, monkeypatch):
    class Empty:
        def packs_of(self, epoch):
            return 1

        def pack(self, index):
            return np.zeros(0, dtype=np.int64)

    sizes = module.pack_sizes(store, image_settings, Empty())
    assert (sizes.views, sizes.loss_rows) == (1, 1)

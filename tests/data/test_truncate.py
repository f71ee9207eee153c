from dataclasses import replace

import numpy as np
import pytest

from megatron_llava.data.collate import collate
from megatron_llava.data.loader import PackedDataLoader
from megatron_llava.data.packing import sample_sizes
from megatron_llava.data.schedule import TrainingSchedule
from megatron_llava.data.truncate import truncated
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX


def beginning(sample, tokens):
    images = int(np.count_nonzero(sample.token_ids[:tokens] == IMAGE_TOKEN_INDEX))
    return replace(
        sample,
        token_ids=sample.token_ids[:tokens],
        label_mask=sample.label_mask[:tokens],
        image_sizes=sample.image_sizes[:images],
        images=sample.images[:images],
    )


def rows_and_views(sample, settings):
    if len(sample.token_ids) == 0:
        return 0, 0
    batch = collate([sample], settings, with_pixels=False)
    return batch.num_rows, batch.num_views


@pytest.mark.parametrize("views_of_several", ["one_padded", "as_single"])
@pytest.mark.parametrize(("share", "max_views"), [(0.1, None), (0.5, None), (1.0, 4), (0.7, 3)])
def test_the_longest_beginning_that_fits(store, image_settings, share, max_views, views_of_several):
    settings = replace(image_settings, multi_image_views=views_of_several)
    lengths, views = sample_sizes(store, settings)
    capacity = int(np.quantile(lengths, share))
    shortened = truncated(store, settings, capacity, max_views)
    found_lengths, found_views = sample_sizes(shortened, settings)
    unfit = lengths > capacity
    if max_views is not None:
        unfit |= views > max_views
    assert 3 < np.count_nonzero(unfit) < len(store)
    for index in range(len(store)):
        whole, found = store.load(index), shortened.load(index)
        tokens = len(found.token_ids)
        np.testing.assert_array_equal(found.token_ids, whole.token_ids[:tokens])
        assert found.images == beginning(whole, tokens).images
        assert rows_and_views(found, settings) == (found_lengths[index], found_views[index])
        if index % 5:  # trying every beginning takes its time
            continue
        fitting = []
        for end in range(len(whole.token_ids) + 1):
            rows, view_count = rows_and_views(beginning(whole, end), settings)
            if rows <= capacity and (max_views is None or view_count <= max_views):
                fitting.append(end)
        trained = whole.label_mask[1 : fitting[-1]].any()
        assert tokens == (fitting[-1] if trained else len(whole.token_ids))
        assert (index in shortened.kept) == (unfit[index] and trained)


def test_a_schedule_of_it(store, image_settings, tmp_path):
    lengths, _ = sample_sizes(store, image_settings)
    capacity = int(np.sort(lengths)[-8])
    shortened = truncated(store, image_settings, capacity)
    made = TrainingSchedule(
        shortened, image_settings, capacity, seed=0, max_bad_records=8, cache_path=tmp_path
    )
    assert len(shortened.kept) + made.num_dropped == np.count_nonzero(lengths > capacity)
    assert len(shortened.kept) > 2
    loader = iter(PackedDataLoader(shortened, image_settings, made, num_workers=1))
    ids = []
    for number in range(len(made.plan(0))):
        batch = next(loader)
        assert batch.num_rows == made.pack_rows(number) <= capacity
        ids += made.pack(number).tolist()
    assert (
        sorted(ids)
        == np.flatnonzero(sample_sizes(shortened, image_settings)[0] <= capacity).tolist()
    )


def test_another_length_is_another_store(store, image_settings):
    lengths, _ = sample_sizes(store, image_settings)
    longest = int(lengths.max())
    prints = [truncated(store, image_settings, longest - n).fingerprint for n in range(3)]
    assert len(set(prints)) == 3 and prints[0] == store.fingerprint

import json
import pickle
import shutil

import numpy as np
import pytest

from megatron_llava.data.merged_store import MergedStore, append_stores, merge_stores, open_store
from megatron_llava.data.schedule import TrainingSchedule
from megatron_llava.data.store import Store
from megatron_llava.data.store_writer import StoreWriter
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX


def write(prefix, samples, fingerprint="f00d", template="v1"):
    """Sample k has k + 2 tokens, k % 3 images of (10 + k) x 20 and k supervised tokens."""
    how = {"tokenizer_fingerprint": fingerprint, "conversation_template": template}
    with StoreWriter(prefix, **how) as writer:
        for k in samples:
            images = k % 3
            tokens = np.array([IMAGE_TOKEN_INDEX] * images + [k] * (k + 2), np.int32)
            mask = np.zeros(len(tokens), np.uint8)
            mask[len(mask) - k :] = k > 0
            content = [bytes([k, n]) * (k + 1) for n in range(images)]
            writer.add(tokens, mask, content, [(10 + k, 20)] * images, f"file:{k}")
        writer.finish()
    return prefix


@pytest.fixture
def stores(tmp_path):
    """A whole store, and one that is merged of three shards, of which one has no image."""
    write(tmp_path / "whole", range(1, 10))
    for name, samples in (("a", range(1, 3)), ("b", [3]), ("c", range(4, 10))):
        write(tmp_path / "shards" / name, samples)
    shards = [tmp_path / "shards" / name for name in "abc"]
    assert merge_stores(tmp_path / "merged", shards, overwrite=False) == 9
    return Store(tmp_path / "whole"), open_store(tmp_path / "merged")


def assert_same(found, expected):
    assert len(found) == len(expected) == 9
    for name in ("image_offsets", "image_sizes", "text_lengths", "supervised_counts"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for index in range(9):
        ours, theirs = found.load(index), expected.load(index)
        np.testing.assert_array_equal(ours.token_ids, theirs.token_ids)
        np.testing.assert_array_equal(ours.label_mask, theirs.label_mask)
        assert ours.images == theirs.images and ours.image_sizes == theirs.image_sizes
        assert found.record_source(index) == f"file:{index + 1}"
        assert found.load(index, with_images=False).images is None
    with pytest.raises(IndexError):
        found.load(9)


def test_a_merged_store_is_the_whole(stores):
    whole, merged = stores
    assert isinstance(merged, MergedStore)
    assert_same(merged, whole)
    assert merged.manifest["counts"] == whole.manifest["counts"]
    merged.verify_checksums()
    assert_same(pickle.loads(pickle.dumps(merged)), whole)


def test_nothing_is_copied_and_all_can_be_moved(stores, tmp_path):
    whole, _ = stores
    assert sorted(p.name for p in tmp_path.glob("merged*")) == ["merged.json"]
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(tmp_path / "shards", moved)
    shutil.move(tmp_path / "merged.json", moved)
    assert_same(open_store(moved / "merged"), whole)


def test_shards_are_appended(stores, tmp_path):
    whole, _ = stores
    a, b, c = (tmp_path / "shards" / name for name in "abc")
    merge_stores(tmp_path / "grown", [a], overwrite=False)
    assert append_stores(tmp_path / "grown", [b, c]) == 9
    assert_same(open_store(tmp_path / "grown"), whole)
    with pytest.raises(ValueError, match="none twice"):
        append_stores(tmp_path / "grown", [b])
    with pytest.raises(ValueError, match="is no merged store"):
        append_stores(tmp_path / "whole", [a])
    assert_same(open_store(tmp_path / "grown"), whole)


def test_a_schedule_reads_it(stores, image_settings, tmp_path):
    _, merged = stores
    schedule = TrainingSchedule(merged, image_settings, 20_000, seed=0, cache_path=tmp_path)
    packs = [schedule.pack(index) for index in range(len(schedule.plan(0)))]
    assert sorted(np.concatenate(packs).tolist()) == list(range(9))


def test_a_shard_that_changed_is_named(stores, tmp_path):
    shutil.rmtree(tmp_path / "shards")
    for name, samples in (("a", range(1, 3)), ("b", [4]), ("c", range(4, 10))):
        write(tmp_path / "shards" / name, samples)
    with pytest.raises(ValueError, match=r"shard .*shards/b has changed since it was merged"):
        open_store(tmp_path / "merged")


def test_what_cannot_be_merged(tmp_path):
    a = write(tmp_path / "a", [1])
    merged = tmp_path / "m"

    def refused(match, *shards, **options):
        with pytest.raises(ValueError, match=match):
            merge_stores(merged, shards, **{"overwrite": False, **options})

    refused("at least one shard")
    refused("none twice", a, tmp_path / "." / "a")
    refused("no such store", a, tmp_path / "absent")
    with pytest.raises(ValueError, match="a: is one of the shards, which the merged store would"):
        merge_stores(a, [a, write(tmp_path / "d", [2])], overwrite=True)
    with pytest.raises(ValueError, match="d: is a store of its own, of which only the manifest"):
        merge_stores(tmp_path / "d", [a], overwrite=True)
    assert len(Store(a)) == len(Store(tmp_path / "d")) == 1
    refused("tokenizer_fingerprint beef", a, write(tmp_path / "b", [1], fingerprint="beef"))
    refused("conversation_template mpt", a, write(tmp_path / "c", [1], template="mpt"))
    assert not (tmp_path / "m.json").exists()
    merge_stores(merged, [a], overwrite=False)
    with pytest.raises(ValueError, match="m.json exists"):
        merge_stores(merged, [a], overwrite=False)
    merge_stores(merged, [a], overwrite=True)
    with pytest.raises(ValueError, match="is a merged store itself, name its shards"):
        merge_stores(tmp_path / "n", [merged], overwrite=False)
    with pytest.raises(ValueError, match="is a merged store, name one of its shards"):
        Store(merged)
    assert json.loads((tmp_path / "m.json").read_text())["shards"][0]["prefix"] == "a"

import os
from dataclasses import replace

import numpy as np
import pytest

from megatron_llava.data import plan_cache
from megatron_llava.data.packing import Balance
from megatron_llava.data.plan_cache import cached_plan

LENGTHS = np.arange(1, 51, dtype=np.int64)
OPTIONS = {"seed": 1, "epoch": 0, "window": 16, "store_fingerprint": "f", "name": "s"}


@pytest.fixture
def made(monkeypatch):
    """How many plans were made rather than read."""
    calls = []
    original = plan_cache.plan_epoch

    def counted(*args, **options):
        calls.append(options)
        return original(*args, **options)

    monkeypatch.setattr(plan_cache, "plan_epoch", counted)
    return calls


def test_a_plan_is_made_once(tmp_path, made):
    first = cached_plan(LENGTHS, 60, cache_path=tmp_path / "new", **OPTIONS)
    second = cached_plan(LENGTHS, 60, cache_path=tmp_path / "new", **OPTIONS)
    assert len(made) == 1
    for name in ("pack_offsets", "sample_ids", "pack_rows"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        assert getattr(second, name).dtype == np.int64
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".npz"]


def test_whatever_a_plan_depends_on_makes_another(tmp_path, made):
    def plan(lengths=LENGTHS, capacity=60, **changes):
        cached_plan(lengths, capacity, cache_path=tmp_path, **{**OPTIONS, **changes})

    plan()
    plan(seed=2)
    plan(epoch=1)
    plan(window=17)
    plan(capacity=61)
    plan(store_fingerprint="g")
    plan(lengths=LENGTHS[::-1].copy())
    plan(views=LENGTHS // 5)
    plan(views=LENGTHS // 5, max_views=20)
    balance = Balance(group=4, row=1, attended=0, view=1)
    plan(balance=balance)
    plan(balance=replace(balance, view=2))
    plan(balance=balance, first_pack=1)
    plan(with_images=LENGTHS > 9, batch=2)
    plan(with_images=LENGTHS > 8, batch=2)
    plan(with_images=LENGTHS > 9, batch=3)
    assert len(made) == len(list(tmp_path.iterdir())) == 15
    plan()
    assert len(made) == 15


@pytest.mark.parametrize("damage", ["empty", "truncated", "changed", "text", "other plan"])
def test_a_damaged_file_is_replaced(tmp_path, made, damage):
    expected = cached_plan(LENGTHS, 60, cache_path=tmp_path, **OPTIONS)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "changed":
        content[len(content) // 2] ^= 1
    if damage == "other plan":
        cached_plan(LENGTHS, 99, cache_path=tmp_path / "other", **OPTIONS)
        (other,) = (tmp_path / "other").iterdir()
        os.replace(other, path)
        (tmp_path / "other").rmdir()
        content = bytearray(path.read_bytes())
        made.clear()
        made.append({})
    new = {"empty": b"", "truncated": content[:-40], "text": b"no plan"}.get(damage, content)
    path.write_bytes(new)
    plan = cached_plan(LENGTHS, 60, cache_path=tmp_path, **OPTIONS)
    assert len(made) == 2
    np.testing.assert_array_equal(plan.sample_ids, expected.sample_ids)
    cached_plan(LENGTHS, 60, cache_path=tmp_path, **OPTIONS)
    assert len(made) == 2 and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="choose another --data-cache-path") as error:
        cached_plan(LENGTHS, 60, cache_path=tmp_path / "file", **OPTIONS)
    assert "\n" not in str(error.value)


def test_a_full_disk_only_costs_the_plan_anew(tmp_path, made, monkeypatch):
    def full(*args, **arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plan_cache.np, "savez", full)
    for _ in range(2):
        plan = cached_plan(LENGTHS, 60, cache_path=tmp_path, **OPTIONS)
        assert sorted(plan.sample_ids.tolist()) == list(range(50))
    assert len(made) == 2 and not list(tmp_path.iterdir())

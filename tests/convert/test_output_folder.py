import multiprocessing
import shutil
from collections import namedtuple

import pytest

from megatron_llava.convert.journal import LOCK_FILE, Journal
from megatron_llava.convert.output_folder import (
    SPARE_BYTES,
    check_room,
    pending_folder,
    pending_name,
)


def test_an_error_leaves_nothing_behind(tmp_path):
    final = tmp_path / "out"
    for error in (RuntimeError, ValueError, KeyboardInterrupt):
        with pytest.raises(error), pending_folder(final, {}) as (pending, _):
            (pending / "file").write_text("half")
            assert not final.exists()
            raise error
        assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_unless_empty(tmp_path):
    final = tmp_path / "out"
    final.mkdir()
    with pending_folder(final, {}) as (pending, _):
        (pending / "file").write_text("whole")
    assert [path.name for path in final.iterdir()] == ["file"]
    with pytest.raises(ValueError, match="already exists"), pending_folder(final, {}):
        raise AssertionError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_task_is_taken_up_again(tmp_path, error):
    final, task = tmp_path / "out", {"from": [["a", 1]]}
    with pytest.raises(error), pending_folder(final, task) as (pending, journal):
        (pending / "first").write_text("done")
        journal.record("step 1", {"n": 1})
        raise error
    assert not final.exists() and pending_name(final).is_dir()
    with pending_folder(final, task) as (pending, journal):
        assert journal.result("step 1") == {"n": 1} and journal.result("step 2") is None
        assert (pending / "first").read_text() == "done"
    assert [path.name for path in final.iterdir()] == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_task_starts_over(tmp_path):
    final = tmp_path / "out"
    with pytest.raises(OSError), pending_folder(final, {"task": 1}) as (pending, journal):
        (pending / "first").write_text("done")
        (pending / "folder").mkdir()
        journal.record("step 1", 1)
        raise OSError
    with pending_folder(final, {"task": 2}) as (pending, journal):
        assert journal.is_empty
        assert [path.name for path in pending.iterdir()] == [LOCK_FILE]


def test_a_damaged_journal_counts_as_none(tmp_path):
    journal = Journal(tmp_path, {})
    journal.record("step", 1)
    path = next(tmp_path.glob(".journal*"))
    path.write_text(path.read_text()[:-4])
    assert Journal(tmp_path, {}).is_empty


def _hold(folder, entered, leave):
    with pending_folder(folder, {}):
        entered.set()
        leave.wait(30)


def test_two_conversions_do_not_share_an_output(tmp_path):
    context = multiprocessing.get_context("spawn")
    entered, leave = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "out", entered, leave))
    process.start()
    assert entered.wait(60)
    with (
        pytest.raises(ValueError, match="another conversion is writing there"),
        pending_folder(tmp_path / "out", {}),
    ):
        raise AssertionError
    leave.set()
    process.join(30)
    assert (tmp_path / "out").is_dir()


def test_too_small_a_disk_is_found_first(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, SPARE_BYTES + 1000))
    check_room(tmp_path / "new" / "out", 1000)
    with pytest.raises(ValueError, match=r"needs 67,109,865 bytes and 67,109,864 are free"):
        check_room(tmp_path / "new" / "out", 1001)

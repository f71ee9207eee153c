"""When snapshots are written; what is in one only a GPU shows (tests/gpu)."""

from pathlib import Path

import pytest
import torch

from megatron_llava.platform.memory_history import memory_history, snapshot_file


@pytest.fixture
def asked(monkeypatch):
    """What torch is asked to do with the history, in order."""
    calls = []
    record = "torch.cuda.memory._record_memory_history"
    monkeypatch.setattr(record, lambda enabled="all", **_: calls.append(enabled))
    monkeypatch.setattr("torch.cuda.memory._dump_snapshot", calls.append)
    return calls


def test_each_rank_has_its_file():
    assert snapshot_file("a/snapshot.pickle", 3) == Path("a/snapshot.rank-3.pickle")


def test_a_snapshot_at_the_end(asked, tmp_path):
    file = tmp_path / "new" / "snapshot"
    with memory_history(file):
        assert asked == ["all"]
    assert asked == ["all", str(file), None] and file.parent.is_dir()


def test_a_snapshot_where_memory_runs_out(asked, tmp_path, capsys):
    with pytest.raises(torch.OutOfMemoryError), memory_history(tmp_path / "snapshot"):
        raise torch.OutOfMemoryError
    assert asked == ["all", str(tmp_path / "snapshot"), None]
    assert capsys.readouterr().err.startswith(f"GPU memory ran out: {tmp_path / 'snapshot'}")


def test_no_snapshot_of_other_errors(asked, tmp_path):
    with pytest.raises(KeyError), memory_history(tmp_path / "snapshot"):
        raise KeyError
    assert asked == ["all", None]

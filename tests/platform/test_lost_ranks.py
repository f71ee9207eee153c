"""Which ranks stop, and with what line, when one of them does not come to the end of a run."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from own_process import TORCHRUN

from megatron_llava.config.exit_codes import RANK_LOST, USER_ERROR
from megatron_llava.platform.lost_ranks import RankWatch, is_communication_error

SCRIPT = Path(__file__).with_name("watched_world.py")


LOST = [
    ("die_in_a_collective", 1, "its process has ended"),
    ("die_where_the_others_hang", 2, "its process has ended"),
    ("stop", 1, "no sign of life for 2 s"),
    ("stop_the_one_that_serves_the_store", 0, "does not answer"),
]
REFUSED = [("refuse_on_one", 1), ("refuse_on_the_one_that_serves_the_store", 0)]
NO_ALARM = ["end_in_order", "be_busy_for_longer_than_the_silence"]
OTHERS = ["fail_on_one", "fail_in_a_collective_though_all_live"]


@pytest.fixture(scope="module")
def watched():
    """How the ranks of each scenario ended."""
    scenarios = [*NO_ALARM, *OTHERS, *(case[0] for case in [*LOST, *REFUSED])]
    environment = {name: value for name, value in os.environ.items() if name not in TORCHRUN}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *scenarios],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout)
    for result in results.values():
        # Torch reports a store that is gone with a page of its own.
        result["lines"] = [line for line in result["lines"] if line.startswith(("prog", "trace"))]
    return results


def named(result, rank):
    return f"rank {rank} (host {socket.gethostname()}, pid {result['pids'][rank]})"


@pytest.mark.parametrize("scenario", NO_ALARM)
def test_no_alarm(watched, scenario):
    result = watched[scenario]
    assert result["codes"] == [0, 0, 0] and result["lines"] == []


@pytest.mark.parametrize(("scenario", "lost", "why"), LOST)
def test_the_others_stop_and_name_the_rank(watched, scenario, lost, why):
    result = watched[scenario]
    survivors = [rank for rank in range(3) if rank != lost]
    assert [result["codes"][rank] for rank in survivors] == [RANK_LOST, RANK_LOST]
    assert len(result["lines"]) == 2
    for line, rank in zip(sorted(result["lines"]), survivors, strict=True):
        start = f"program (rank {rank}): error: {named(result, lost)} is lost: "
        assert line.startswith(start) and why in line and line.endswith("; run again"), line
    assert result["seconds"] < 15


@pytest.mark.parametrize(("scenario", "rank"), REFUSED)
def test_the_line_of_a_user_error_stays_the_only_one(watched, scenario, rank):
    result = watched[scenario]
    assert result["codes"] == [USER_ERROR] * 3
    assert result["lines"] == [f"program (rank {rank}): error: a flag is wrong"]
    if rank > 0:
        # It is said a while later than by rank 0, and whoever ends first ends all.
        assert result["at_first_end"] == result["lines"]


def test_a_traceback_on_one_rank_ends_the_others(watched):
    result = watched["fail_on_one"]
    assert result["codes"] == [RANK_LOST, RANK_LOST, 1]
    assert "traceback of rank 2: too much" in result["lines"]
    told = f"error: {named(result, 2)} failed: MemoryError: too much; run again"
    assert sum(told in line for line in result["lines"]) == 2


def test_an_error_of_a_collective_that_no_lost_rank_explains_is_shown(watched):
    result = watched["fail_in_a_collective_though_all_live"]
    assert result["codes"] == [1, RANK_LOST, RANK_LOST]
    assert "traceback of rank 0: NCCL error: this one is its own fault" in result["lines"]


def test_a_world_of_one_has_no_threads(monkeypatch):
    import threading

    monkeypatch.setattr(threading.Thread, "start", lambda self: pytest.fail("a thread"))
    with RankWatch(dist.HashStore(), 0, 1, "program", "run again"):
        pass


def test_an_error_of_a_collective_is_known_by_its_cause():
    assert is_communication_error(RuntimeError("[gloo/x.cc:1] Connection closed by peer [::1]"))
    assert is_communication_error(dist.DistBackendError("NCCL error"))
    try:
        try:
            raise RuntimeError("gloo: Connection closed by peer")
        except RuntimeError as error:
            raise ValueError("the checkpoint could not be read") from error
    except ValueError as error:
        assert is_communication_error(error)
    assert not is_communication_error(RuntimeError("shapes do not fit"))
    assert not is_communication_error(ValueError("--lr"))

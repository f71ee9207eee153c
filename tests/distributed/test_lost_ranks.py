"""Real processes, of which one is killed, stops or is asked to stop; the run is then resumed."""

import numpy as np
import pytest
from distributed_jobs import train
from launched import by_hand, under_torchrun

from megatron_llava.config.exit_codes import RANK_LOST, STOPPED
from megatron_llava.parallel.checkpoint_directory import latest_iteration

SIGKILL, SIGTERM = -9, -15
GO_ON = "run the same command again to go on from the last checkpoint in "
MICROBATCHES = 2
"""Of a rank in a step: 4 packs on 2 data-parallel ranks."""


@pytest.fixture(scope="module")
def uninterrupted(pool, setup):
    return pool.run(train, setup.arguments(steps=6), world_size=2, timeout=150, with_shards=True)


@pytest.fixture
def command(setup, tmp_path):
    saving = [f"--save={tmp_path}", f"--load={tmp_path}", "--save-interval=2"]
    return [*setup.arguments(steps=6), *saving, "--log-interval=1"]


def assert_goes_on(pool, command, root, uninterrupted, *, step):
    """The run resumes after ``step`` and ends with the weights of one without interruption."""
    assert latest_iteration(root) == step
    resumed = pool.run(train, command, world_size=2, timeout=150, with_shards=True)
    assert resumed[0]["steps"][0]["iteration"] == step + 1
    assert resumed[0]["steps"] == uninterrupted[0]["steps"][step:]
    for shard, same in zip(uninterrupted[0]["shards"], resumed[0]["shards"], strict=True):
        assert np.array_equal(shard.array, same.array), shard.key
    assert not list(root.glob("*.partial*"))


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_killed_in_a_step(pool, command, tmp_path, uninterrupted, lost):
    fault = {"rank": lost, "signal": "SIGKILL", "place": "forward", "call": 2 * MICROBATCHES + 1}
    ended = by_hand(command, fault)
    survivor = ended[1 - lost]
    assert ended[lost].code == SIGKILL and survivor.code == RANK_LOST, survivor.output
    line = next(text for text in survivor.output.splitlines() if " is lost: " in text)
    assert line.startswith(f"megatron_llava.train (rank {1 - lost}): error: rank {lost} (host ")
    assert line.endswith(
        f"run the same command again to go on from the last checkpoint in {tmp_path}"
    )
    assert "Traceback" not in survivor.output
    assert_goes_on(pool, command, tmp_path, uninterrupted, step=2)


def test_a_rank_killed_in_a_save_under_torchrun(pool, command, tmp_path, uninterrupted):
    fault = {"rank": 1, "signal": "SIGKILL", "place": "save", "call": 1}
    ended = under_torchrun(command, fault)
    assert ended.code == 1
    assert "megatron_llava.train (rank 0): error: rank 1 (host " in ended.output
    assert list(tmp_path.glob("iter_0000004*partial*"))
    assert_goes_on(pool, command, tmp_path, uninterrupted, step=2)


def test_sigterm_to_one_rank_saves_on_all(pool, command, tmp_path, uninterrupted):
    """Also to the processes that read the data, which the step still needs."""
    fault = {"rank": 1, "signal": "SIGTERM", "place": "forward", "call": 2 * MICROBATCHES + 1}
    ended = by_hand([*command, "--num-workers=2"], {**fault, "group": True})
    assert [process.code for process in ended] == [STOPPED, STOPPED], ended
    assert f"step 3: SIGTERM; {GO_ON}{tmp_path}" in ended[0].output.splitlines()
    assert_goes_on(pool, command, tmp_path, uninterrupted, step=3)


def test_a_loader_worker_killed(setup):
    """As the kernel does where memory runs out, while the trainer is elsewhere."""
    fault = {"rank": 0, "signal": "SIGKILL", "place": "forward", "call": 1, "children": True}
    (ended,) = by_hand([*setup.arguments(), "--num-workers=2"], fault, world_size=1)
    assert ended.code == RANK_LOST, ended.output
    (line,) = [text for text in ended.output.splitlines() if "loader worker" in text]
    assert line.startswith("megatron_llava.train: error: a loader worker (process ")
    assert "is killed by signal: Killed" in line and "lower --num-workers" in line
    assert "Traceback" not in ended.output


def test_sigterm_without_save_ends_the_run(setup):
    fault = {"rank": 0, "signal": "SIGTERM", "place": "forward", "call": 0}
    assert by_hand(setup.arguments(), fault, world_size=1)[0].code == SIGTERM

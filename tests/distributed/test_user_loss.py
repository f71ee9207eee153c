"""A loss of the user's own: every layout trains as one rank does, and rows are what they say."""

import numpy as np
import pytest
from distributed_jobs import first_origins, train, train_checking_rows
from distributed_layouts import (
    COMMON,
    Layout,
    assert_same_parameters,
    assert_same_steps,
    distributed,
)

PLAIN, CLIPPED, CHECKED = (
    f"--loss-function=loss_functions:{name}" for name in ("plain", "ppo_clip", "checked")
)


@pytest.mark.proves("F1")
@distributed(Layout(tp=2), Layout(pp=2), Layout(cp=2))
def test_the_cross_entropy_as_ones_own_changes_no_bit(pool, setup, layout):
    def run(*flags):
        arguments = setup.arguments(*COMMON, *layout.flags, *flags, steps=3)
        return pool.run(train, arguments, world_size=layout.world_size, with_shards=True)

    without, with_own = run(), run(PLAIN)
    for step, same in zip(without[0]["steps"], with_own[0]["steps"], strict=True):
        assert "user loss" not in step and "lm loss" not in same
        assert step["lm loss"] == same["user loss"] and step["grad norm"] == same["grad norm"]
    for rank, same in zip(without, with_own, strict=True):
        for shard, other in zip(rank["shards"], same["shards"], strict=True):
            assert shard.key == other.key and np.array_equal(shard.array, other.array), shard.key


@pytest.mark.proves("F1")
@distributed(
    Layout(tp=2, pp=2, vpp_layers=1, sp=True),
    Layout(cp=2, tp=2, vision="data"),
    Layout(cp=2, pp=2, dp=2),
)
def test_a_clipped_policy_loss_is_that_of_one_rank(pool, setup, one_rank, layout):
    """Its advantages belong to samples and positions, so a wrong one would be another loss."""
    expected = one_rank(*COMMON, CLIPPED)
    arguments = setup.arguments(*COMMON, *layout.flags, CLIPPED)
    found = pool.run(train, arguments, world_size=layout.world_size, with_shards=True)
    assert_same_steps(found[0]["steps"], expected["steps"])
    assert_same_parameters([rank["shards"] for rank in found], expected["shards"], 1e-3)


@distributed(Layout(dp=2), Layout(cp=2, pp=2))
def test_rows_are_those_labels_of_the_store_that_they_say(pool, setup, layout, tmp_path):
    """Also after a resume, at another number of ranks."""
    where = (f"--save={tmp_path}", f"--load={tmp_path}", "--save-interval=3", CHECKED)

    def run(world_size, *flags):
        arguments = setup.arguments(*where, *flags, steps=6)
        return pool.run(train_checking_rows, arguments, setup.store, world_size=world_size)

    first = run(layout.world_size, "--exit-interval=3", *layout.flags)
    then = run(1)
    assert [step["iteration"] for step in first[0]["steps"] + then[0]["steps"]] == [*range(1, 7)]


def test_evaluation_keeps_the_cross_entropy(pool, setup, one_rank):
    flags = [f"--valid-data-path={setup.store}", "--eval-interval=1", "--lr=1e-12"]
    runs = {"lm": one_rank(*flags, steps=3), "user": one_rank(*flags, CLIPPED, steps=3)}
    expected, found = (run["validations"] for run in runs.values())
    assert len(found) == 3 and found == pytest.approx(expected, rel=1e-6)
    of_steps = [[step[f"{kind} loss"] for step in run["steps"]] for kind, run in runs.items()]
    assert not np.allclose(*of_steps)


def test_only_the_last_stage_of_such_a_run_learns_where_rows_come_from(pool, setup):
    def told(*flags):
        arguments = setup.arguments("--pipeline-model-parallel-size=2", *flags)
        return pool.run(first_origins, arguments, world_size=2)

    first, last = told(CHECKED)
    assert first is None and len(last) > 0
    assert told() == [None, None]

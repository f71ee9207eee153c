"""--async-save: training goes on, and a checkpoint is there when all of it is written or never."""

from __future__ import annotations

import re

import pytest
from checkpoint_jobs import (
    differences,
    save_after_sigterm,
    train_until_writer_dies,
    train_while_writing,
)
from distributed_jobs import train

from megatron_llava.parallel.checkpoint_directory import latest_iteration

LAYOUTS = {
    "one": (1, []),
    "dp2": (2, ["--use-distributed-optimizer", "--dist-ckpt-optim-fully-reshardable"]),
}


@pytest.fixture
def run(tmp_path):
    root = tmp_path / "run"
    return root, [f"--save={root}", f"--load={root}"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_goes_on_and_the_values_are_those_of_the_save(pool, setup, tmp_path, run, layout):
    world_size, flags = LAYOUTS[layout]
    root, saving = run
    arguments = setup.arguments(*flags, steps=4)
    plain = tmp_path / "plain"
    pool.run(
        train,
        [*arguments, f"--save={plain}", "--save-interval=2"],
        world_size=world_size,
    )
    result = pool.run(
        train_while_writing,
        [*arguments, *saving, "--save-interval=2", "--async-save"],
        root,
        world_size=world_size,
    )[0]
    assert len(result["seen"]) == 1, "no tracker, no checkpoint, but the folder that grows"
    assert re.fullmatch(r"iter_0000002\.partial-\w+", result["seen"][0])
    said = [message for message in result["messages"] if message.startswith("step")]
    starts = ["step 2: saving", "step 2: saved", "step 4: saving", "step 4: saved"]
    assert len(said) == 4 and all(map(str.startswith, said, starts)), said
    assert latest_iteration(root) == 4
    assert sorted(path.name for path in root.glob("iter*")) == ["iter_0000002", "iter_0000004"]
    for folder in ("iter_0000002", "iter_0000004"):
        assert pool.run(differences, root / folder, plain / folder)[0] == []


def test_a_save_waits_for_the_one_before(pool, setup, run):
    root, saving = run
    flags = [*saving, "--save-interval=1", "--async-save"]
    messages = pool.run(train, setup.arguments(*flags, steps=4))[0]["messages"]
    said = [message[:12] for message in messages if "sav" in message]
    assert said == [
        f"step {step}: {word}"[:12] for step in range(1, 5) for word in ("savi", "save")
    ]
    assert len(list(root.glob("iter*"))) == 4 and latest_iteration(root) == 4


@pytest.mark.parametrize("helper", [False, True], ids=["writer", "its-helper"])
def test_a_killed_writer_leaves_the_last_good_checkpoint(pool, setup, tmp_path, run, helper):
    world_size, flags = LAYOUTS["dp2"]
    root, saving = run
    arguments = [*setup.arguments(*flags, steps=4), *saving]
    pool.run(train, [*arguments, "--save-interval=1", "--exit-interval=1"], world_size=world_size)
    later = [*arguments, "--save-interval=2", "--async-save"]
    (gates := tmp_path / "gates").mkdir()
    errors = pool.run(
        train_until_writer_dies, later, gates, 1, helper=helper, world_size=world_size
    )
    for error in errors:
        how = "ended with exit code 1" if helper else "was killed by signal 9"
        assert (
            f"iter_0000002: the checkpoint could not be written (rank 1: its writer {how})" in error
        )
        assert "untouched" in error and "\n" not in error
    assert latest_iteration(root) == 1
    assert [path.name for path in root.glob("iter*")] == ["iter_0000001"]
    # The same processes save well afterwards: nothing of the failed save is left in core's queues.
    resumed = pool.run(train, later, world_size=world_size)[0]["steps"]
    assert [step["iteration"] for step in resumed] == [2, 3, 4]
    assert latest_iteration(root) == 4


def test_a_last_save_works_after_sigterm_to_all_processes_of_a_rank(pool, setup, run):
    """Launchers send it to a rank's process group: to core's queue of results as well."""
    pool.close()  # that queue lives as long as a process
    root, saving = run
    messages = pool.run(save_after_sigterm, setup.arguments(*saving, "--save-interval=3", steps=3))
    assert [m[:13] for m in messages[0] if "saved" in m] == ["step 0: saved", "step 3: saved"]
    assert latest_iteration(root) == 3

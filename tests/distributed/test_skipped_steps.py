"""A loss or gradient that is no number on one rank: all ranks skip the step, and go on."""

import math

import numpy as np
import pytest
from distributed_faults import save_spoilt_weights, train_spoilt
from distributed_jobs import train
from tiny_model import tiny_sample

from megatron_llava.data.store_writer import StoreWriter
from megatron_llava.parallel.checkpoint_directory import latest_iteration

OVERLAPS = ["--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather"]
TP2_PP2 = ["--tensor-model-parallel-size=2", "--pipeline-model-parallel-size=2"]
# World size, flags, the rank at fault, its forward pass (in step 3), and the pack that this is.
PLACES = {
    "one-rank": (1, [], 0, 10, 10),
    "tp2-pp2-first-stage": (4, TP2_PP2, 1, 9, 9),
    "tp2-pp2-last-stage": (4, [*TP2_PP2, "--sequence-parallel"], 3, 11, 11),
    "dp2-overlaps": (2, [*OVERLAPS, "--ddp-bucket-size=20000"], 1, 5, 11),
    "dp2-overlaps-bf16": (2, ["--bf16", *OVERLAPS, "--clip-grad=0"], 0, 4, 8),
}


def arguments(setup, *more, steps=5):
    constant = ["--lr-decay-style=constant", "--lr-decay-iters=5"]
    return setup.arguments(*constant, *more, steps=steps)


def assert_same_weights(found, expected):
    for rank, (one, other) in enumerate(zip(found, expected, strict=True)):
        for shard, same in zip(one["shards"], other["shards"], strict=True):
            assert np.array_equal(shard.array, same.array), (rank, shard.key)


@pytest.mark.proves("D15")
@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("place", PLACES)
def test_the_step_is_skipped_on_all_ranks(pool, setup, place, kind):
    world_size, flags, rank, microbatch, pack = PLACES[place]
    fault = (kind, rank, (microbatch,))
    before = pool.run(
        train, arguments(setup, *flags, steps=2), world_size=world_size, with_shards=True
    )
    skipped = pool.run(
        train_spoilt, arguments(setup, *flags, steps=3), *fault, world_size=world_size
    )
    assert_same_weights(skipped, before)
    results = pool.run(train_spoilt, arguments(setup, *flags), *fault, world_size=world_size)
    steps = results[0]["steps"]
    assert [step["skipped steps"] for step in steps] == [0, 0, 1, 1, 1]
    assert [math.isfinite(step["grad norm"]) for step in steps] == [True, True, False, True, True]
    for result in results:
        (message,) = (text for text in result["messages"] if "skipped" in text)
        assert message.startswith("step 3: the ") and "1 of --max-skipped-steps 10" in message
        if kind == "loss":
            assert f"; not finite on {result['samples'][pack]}; " in message
        else:
            assert f"; the step held {result['samples of step 3']}; " in message
        for shard in result["shards"]:
            assert np.isfinite(shard.array).all(), shard.key
    for shard, old in zip(results[0]["shards"], skipped[0]["shards"], strict=True):
        assert not np.array_equal(shard.array, old.array), shard.key
    if "dp2" in place:
        assert_same_weights(results[:1], results[1:])


def test_a_step_without_labels_is_named_and_skipped(pool, setup, tmp_path):
    """As a store of another program may have it: ours refuses conversations without an answer."""
    with StoreWriter(
        tmp_path / "unlabelled", tokenizer_fingerprint="none", conversation_template="v1"
    ) as store:
        for number in range(8):
            sample = tiny_sample([], 300, number)
            no_labels = np.zeros_like(sample.label_mask)
            store.add(sample.token_ids, no_labels, (), (), str(number))
        store.finish()
    command = arguments(setup, f"--data-path={tmp_path / 'unlabelled'}", "--max-skipped-steps=1")
    result = pool.run(train_spoilt, command, "loss", 0, (), world_size=2)[0]
    assert [step["skipped steps"] for step in result["steps"]] == [1]
    (message,) = (text for text in result["messages"] if "skipped" in text)
    assert message.startswith("step 1: no position of it has a label; the step held store ")
    assert result["error"].startswith("step 2: no position of it has a label")


def test_what_comes_after_is_as_on_one_rank(pool, setup):
    world_size, flags, rank, microbatch, _ = PLACES["tp2-pp2-last-stage"]
    one = pool.run(train_spoilt, arguments(setup), "loss", 0, (11,))[0]["steps"]
    many = pool.run(
        train_spoilt, arguments(setup, *flags), "loss", rank, (microbatch,), world_size=world_size
    )[0]["steps"]
    for step, expected in zip(many, one, strict=True):
        assert step["samples"] == expected["samples"] and step["lr"] == expected["lr"]
        for name in ("lm loss", "grad norm"):
            assert step[name] == pytest.approx(expected[name], rel=1e-4, nan_ok=True)


def test_too_many_skipped_steps_end_the_run_and_the_count_is_resumed(pool, setup, tmp_path):
    saving = [f"--save={tmp_path}", f"--load={tmp_path}", "--save-interval=1"]
    command = arguments(setup, *saving, "--max-skipped-steps=2", steps=20)
    # Steps 2, 3 and 5 of the run in its first part, 6 and 7 of it in the second.
    first = pool.run(train_spoilt, [*command, "--exit-interval=4"], "loss", 1, (2, 5), world_size=2)
    assert [step["skipped steps"] for step in first[0]["steps"]] == [0, 1, 2, 2]
    assert latest_iteration(tmp_path) == 4
    second = pool.run(train_spoilt, command, "gradient", 0, (3,), world_size=2)
    assert [step["skipped steps"] for step in second[0]["steps"]] == [2]
    for result in second:
        error = result["error"]
        assert error.startswith("step 6: the gradient is not finite at a loss of ")
        assert "; 3 skipped steps are more than --max-skipped-steps 2: " in error
        assert "\n" not in error and "--lr" in error
    assert latest_iteration(tmp_path) == 5
    third = pool.run(train_spoilt, [*command, "--max-skipped-steps=3"], "loss", 0, (0,))
    assert [step["skipped steps"] for step in third[0]["steps"]][:2] == [3, 3]


def test_none_may_be_skipped(pool, setup):
    result = pool.run(train_spoilt, arguments(setup, "--max-skipped-steps=0"), "loss", 0, (0,))[0]
    assert result["error"].startswith("step 1: the loss is nan over ")
    assert "1 skipped steps are more than --max-skipped-steps 0" in result["error"]


def test_weights_that_are_no_numbers_are_not_saved(pool, setup, tmp_path):
    """All ranks refuse, also where one of them has the weight."""
    command = arguments(setup, f"--save={tmp_path / 'run'}", "--save-interval=1")
    errors = pool.run(save_spoilt_weights, command, 1, world_size=2)
    for error in errors:
        assert error.startswith("step 0: some weights are not finite: nothing was saved")
        assert "--lr" in error and "\n" not in error
    assert not list(tmp_path.glob("run/iter*"))


@pytest.mark.proves("D15")
@pytest.mark.parametrize(
    ("world_size", "flags", "rank"),
    [(4, [*TP2_PP2, "--sequence-parallel"], 3), (2, OVERLAPS, 1)],
    ids=["tp2-pp2", "dp2-overlaps"],
)
def test_a_loss_far_above_those_before_is_skipped_on_all_ranks(
    pool, setup, tmp_path, world_size, flags, rank
):
    """Step 3, the first after a resumption: what was seen before that is remembered."""
    fault = ("spike", rank, (1,))
    command = arguments(setup, *flags, "--loss-spike-factor=3", "--loss-spike-window=2")
    saving = [f"--save={tmp_path}", f"--load={tmp_path}", "--save-interval=2"]
    pool.run(train, [*command, *saving, "--exit-interval=2"], world_size=world_size)
    results = pool.run(train_spoilt, [*command, *saving], *fault, world_size=world_size)
    steps = results[0]["steps"]
    assert [step["iteration"] for step in steps] == [3, 4, 5]
    assert [step["skipped steps"] for step in steps] == [1, 1, 1]
    assert math.isfinite(steps[0]["grad norm"]) and steps[0]["lm loss"] > 3 * steps[1]["lm loss"]
    for result in results:
        (message,) = (text for text in result["messages"] if "skipped" in text)
        assert message.startswith("step 3: the loss ") and "--loss-spike-factor" in message
        assert f"; the step held {result['samples of step 3']}; " in message
        assert "1 of --max-skipped-steps 10" in message and "\n" not in message
    if world_size == 2:
        assert_same_weights(results[:1], results[1:])


def test_a_guard_that_sees_no_spike_changes_nothing(pool, setup):
    plain, guarded = (
        pool.run(train, arguments(setup, *flags), with_shards=True)
        for flags in ((), ("--loss-spike-factor=3", "--loss-spike-window=2"))
    )
    assert plain[0]["steps"] == guarded[0]["steps"]
    assert_same_weights(guarded, plain)

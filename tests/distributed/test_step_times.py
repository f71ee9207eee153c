"""Shares of the time, and the rank that the others wait for."""

import socket
import statistics

import pytest
from distributed_faults import train_slowly
from distributed_jobs import train

PP2 = ["--pipeline-model-parallel-size=2"]
WAIT = 0.2
"""Seconds, more than what ranks that share a machine differ by."""


@pytest.mark.parametrize(
    ("flags", "rank", "where"),
    [([], 1, "forward"), ([], 0, "data"), (PP2, 1, "backward")],
    ids=str,
)
def test_the_slow_rank_is_named(pool, setup, flags, rank, where):
    arguments = setup.arguments("--log-straggler", *flags, steps=4)
    result = pool.run(train_slowly, arguments, rank, WAIT, where, world_size=2)[0]
    # The first step pays for what is done once, and another process may hold up one of the others.
    steps = result["steps"][1:]
    assert statistics.mode(step["slowest rank"] for step in steps) == rank
    assert {step["slowest host"] for step in steps} == {socket.gethostname()}
    column = "data" if where == "data" else "compute"

    def median(name):
        return statistics.median(step[name] for step in steps)

    waits = WAIT * (4 if flags else 2)
    assert median(f"{column} s/step max") - median(f"{column} s/step min") > waits / 2
    # The other rank waits for it.
    assert median("communication s/step max") > waits / 2
    said = [text for text in result["messages"] if text.startswith("slowest rank")]
    assert len(said) == 4
    for text, step in zip(said[1:], steps, strict=True):
        assert text.startswith(f"slowest rank {step['slowest rank']} on {socket.gethostname()}: ")


def test_shares_of_modules_and_nothing_changes(pool, setup):
    flags = ["--recompute-granularity=full", "--recompute-method=uniform"]
    flags += ["--recompute-num-layers=1", "--recompute-vision"]
    plain, timed = (
        pool.run(train, setup.arguments(*flags, *more), with_shards=True)[0]
        for more in ([], ["--timing-log-level=2"])
    )
    for step, expected in zip(timed["steps"], plain["steps"], strict=True):
        times = {name: step.pop(name) for name in list(step) if name.startswith("time ")}
        assert step == expected
        assert sum(times.values()) == pytest.approx(100)
        assert set(times) == {
            f"time {part} %"
            for part in (
                "data",
                "vision tower",
                "projector",
                "language model",
                "compute",
                "communication",
                "optimizer",
                "other",
            )
        }
        assert times["time language model %"] > times["time projector %"] > 0
    for shard, same in zip(timed["shards"], plain["shards"], strict=True):
        assert (shard.array == same.array).all(), shard.key

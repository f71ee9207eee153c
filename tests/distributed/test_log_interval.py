"""Which steps are logged, and that the lines add up to the run."""

import pytest
from distributed_jobs import train


@pytest.mark.parametrize(
    ("flags", "logged"),
    [([], [1, 3, 6, 7]), (["--exit-interval=5"], [1, 3, 5]), (["--exit-interval=3"], [1, 3])],
    ids=["to the end", "left between lines", "left at a line"],
)
def test_the_lines_add_up_to_the_run(pool, setup, flags, logged):
    steps = pool.run(train, setup.arguments(*flags, steps=7), log_interval=3)[0]["steps"]
    every = pool.run(train, setup.arguments(*flags, steps=7))[0]["steps"]
    assert [step["iteration"] for step in steps] == logged
    assert [step["iteration"] for step in every] == list(range(1, logged[-1] + 1))
    assert sum(step["samples"] for step in steps) == sum(step["samples"] for step in every)
    assert steps[-1]["lm loss"] == every[-1]["lm loss"]

"""The harness itself: results, errors, and what a hang looks like."""

import pytest
from distributed_jobs import hang_on_rank, sum_of_ranks
from distributed_pool import JobFailed, Pool


def test_results_come_by_rank(pool):
    assert pool.run(sum_of_ranks, world_size=2) == [1, 1]


def test_a_hang_shows_the_stack_of_the_rank_that_hangs():
    own = Pool()
    try:
        with pytest.raises(JobFailed, match="hang_on_rank"):
            own.run(hang_on_rank, 1, world_size=2, timeout=10)
        assert own.run(sum_of_ranks, world_size=1) == [0]
    finally:
        own.close()


def test_an_error_on_one_rank_is_reported(pool):
    with pytest.raises(JobFailed, match="(?s)rank 0.*TypeError"):
        pool.run(hang_on_rank, world_size=1)

"""The harness itself: results, errors, and what a hang looks like."""

import pytest
from distributed_jobs import die_on_rank, hang_on_rank, make_groups, number_of_threads, sum_of_ranks
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


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_rank_that_dies_is_reported_and_replaced(pool, world_size):
    with pytest.raises(JobFailed, match="rank 0: died with exit code 3"):
        pool.run(die_on_rank, 0, world_size=world_size)
    assert pool.run(sum_of_ranks, world_size=2) == [1, 1]


def test_threads_of_a_job_end_with_it(pool):
    """Gloo's threads wake all the time: jobs that left theirs made every later one slow."""
    # Core's own globals keep two groups until the next ones take their places.
    pool.run(make_groups, world_size=2)
    before = pool.run(number_of_threads, world_size=2)
    pool.run(make_groups, world_size=2)
    assert pool.run(number_of_threads, world_size=2) == before

"""The order of forwards and backwards on a pipeline rank, and the most that it keeps."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from megatron_llava.plan.schedule import ROUNDS, peak, steps


@given(
    stages=st.integers(1, 6),
    chunks=st.integers(1, 3),
    rounds=st.integers(1, 4),
    data=st.data(),
)
def test_every_backward_follows_its_forward(stages, chunks, rounds, data):
    stage = data.draw(st.integers(0, stages - 1))
    microbatches = stages * rounds
    chunks = chunks if stages > 1 else 1
    flying, done = Counter(), Counter()
    for what, part in steps(stages, stage, chunks, microbatches):
        flying[part] += 1 if what == "forward" else -1
        done[what, part] += 1
        assert flying[part] >= 0
    assert set(done.values()) == {microbatches} and len(done) == 2 * chunks
    assert not any(flying.values())


@given(stages=st.integers(1, 6), microbatches=st.integers(1, 12), data=st.data())
def test_one_forward_one_backward_holds_as_many_as_there_are_stages_left(
    stages, microbatches, data
):
    stage = data.draw(st.integers(0, stages - 1))
    order = steps(stages, stage, 1, microbatches)
    assert peak(order, [(10, 1)], [[(0, 0)]]) == tuple(
        min(stages - stage, microbatches) * size for size in (10, 1)
    )


@given(
    stages=st.integers(1, 6),
    chunks=st.integers(1, 3),
    kept=st.lists(st.tuples(st.integers(0, 99)), min_size=3, max_size=3),
    data=st.data(),
)
def test_more_rounds_than_some_keep_no_more(stages, chunks, kept, data):
    stage = data.draw(st.integers(0, stages - 1))
    chunks = chunks if stages > 1 else 1
    few, many = (
        peak(steps(stages, stage, chunks, stages * rounds), kept[:chunks], [[(3,)]] * chunks)
        for rounds in (ROUNDS, 3 * ROUNDS)
    )
    assert few == many


def test_two_virtual_stages_on_two_ranks():
    order = "".join(f"{what[0]}{part}" for what, part in steps(2, 0, 2, 4))
    assert order == "f0f0f1f1f0b1f0b1f1b0f1b0b1b1b0b0"
    # Five are in flight; the most bytes when those are all four of part 0 and the last of part 1.
    assert peak(steps(2, 0, 2, 4), [(100,), (1,)], [[(0,)], [(0,)]]) == (401,)


def test_what_a_backward_needs_besides():
    rerun = [[(7, -2)]]
    assert peak(steps(1, 0, 1, 3), [(10, 2)], rerun) == (17, 0)
    # Where it lets go of more than it takes, the most is at its start.
    assert peak(steps(1, 0, 1, 3), [(10, 9)], [[(7, -9)]]) == (10, 9)

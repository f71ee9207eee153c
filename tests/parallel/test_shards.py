"""Parts of parameters: merged, held against each other, and against other versions."""

import numpy as np
import pytest

from megatron_llava.parallel.recorded_steps import RecordedStep, Tolerances, compare_steps
from megatron_llava.parallel.shards import (
    Shard,
    compare,
    holders,
    keys_of,
    merge,
    replica_differences,
)

WHOLE = np.arange(1, 25, dtype=np.float32).reshape(4, 6)


def shard(rows=slice(0, 4), columns=slice(0, 6), key="weight"):
    offset = (rows.start, columns.start)
    return Shard(key, WHOLE.shape, offset, WHOLE[rows, columns].copy())


def by_rows():
    """Two ranks with half of the rows each, and their replicas."""
    return [[shard(rows)] for rows in (slice(0, 2), slice(2, 4)) * 2]


def test_parts_are_merged():
    assert np.array_equal(merge(by_rows(), "weight"), WHOLE)
    columns = [[shard(columns=slice(start, start + 2))] for start in (4, 0, 2)]
    assert np.array_equal(merge(columns, "weight"), WHOLE)
    assert keys_of([[shard(key="b")], [shard(key="a"), shard(key="b")]]) == ["a", "b"]


def test_a_part_that_nobody_holds_is_named():
    with pytest.raises(ValueError, match=r"weight: no rank holds the element at \[2, 0\]"):
        merge([by_rows()[0]], "weight")


def test_wholes_of_different_shapes_are_refused():
    other = Shard("weight", (4, 3), (0, 0), WHOLE[:, :3])
    with pytest.raises(ValueError, match="different shapes"):
        merge([[shard()], [other]], "weight")


def test_the_largest_difference_is_placed_in_the_whole():
    spoilt = WHOLE.copy()
    spoilt[3, 2] += 0.5
    difference = compare("weight", WHOLE[2:], spoilt[2:], (2, 0))
    assert difference.index == (3, 2)
    assert difference.relative == pytest.approx(0.5 / np.linalg.norm(WHOLE[2:]))
    assert compare("weight", WHOLE, WHOLE.copy()) is None


def test_no_number_is_a_difference():
    spoilt = WHOLE.copy()
    spoilt[1, 4] = np.nan
    difference = compare("weight", WHOLE, spoilt)
    assert difference.index == (1, 4) and not difference.relative < 1e9


def test_replicas_that_disagree_are_named():
    ranks = by_rows()
    assert replica_differences(ranks, "weight") == []
    ranks[3][0].array[1, 5] += 1e-3
    (found,) = replica_differences(ranks, "weight")
    assert found.ranks == (1, 3) and found.difference.index == (3, 5)
    assert replica_differences(ranks, "weight", tolerance=1e-3) == []


def test_holders_of_an_element():
    assert holders(by_rows(), "weight", (1, 5)) == [0, 2]
    assert holders(by_rows(), "weight", (2, 0)) == [1, 3]
    assert holders(by_rows(), "bias", (2, 0)) == []


VALUES = {"lm loss": 2.0, "grad norm": 1.0}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"grad norm": 1.1}, "grad norm 1 and 1.1; the parameters agree"),
        ({"lm loss": float("nan")}, "lm loss 2 and nan; the parameters agree"),
    ],
)
def test_values_that_differ_are_said(values, words):
    tolerances = Tolerances(values=1e-4, weights=1e-4, replicas=0)
    first = RecordedStep(VALUES, [[shard()]])
    assert "parameters equal" in compare_steps(first, first, tolerances)
    with pytest.raises(ValueError, match=words):
        compare_steps(first, RecordedStep({**VALUES, **values}, by_rows()), tolerances)


def test_different_models_are_refused():
    tolerances = Tolerances(values=1e-4, weights=1e-4, replicas=0)
    first, second = RecordedStep(VALUES, [[shard()]]), RecordedStep(VALUES, [[shard(key="x")]])
    with pytest.raises(ValueError, match="only one layout has weight"):
        compare_steps(first, second, tolerances)

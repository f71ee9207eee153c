"""Answers do not depend on the tensor-parallel layout that computes them."""

import numpy as np
import pytest
from distributed_generation import answers


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_two_ranks_answer_as_one(pool, setup, sequence_parallel):
    one = pool.run(answers, setup.root, tensor_parallel=1, sequence_parallel=False)[0]
    results = pool.run(
        answers,
        setup.root,
        world_size=2,
        tensor_parallel=2,
        sequence_parallel=sequence_parallel,
    )
    assert len({tokens for tokens, _ in one}) == 4
    for rank in results:
        assert [tokens for tokens, _ in rank] == [tokens for tokens, _ in one]
        for (_, found), (_, expected) in zip(rank, one, strict=True):
            assert found.shape == (300,)
            assert np.allclose(found, expected, atol=1e-4)

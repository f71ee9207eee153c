"""Attention whose positions lie on several ranks is attention."""

import pytest
from distributed_attention import attention_difference


@pytest.mark.parametrize(
    ("ranks", "heads", "groups"),
    [(2, 4, 4), (2, 4, 2), (2, 6, 3), (2, 4, 1), (4, 4, 2), (4, 12, 6)],
)
def test_it_equals_attention_on_one_rank(pool, ranks, heads, groups):
    for differences in pool.run(
        attention_difference, heads, groups, [3, 1, 2], "float64", world_size=ranks
    ):
        assert max(differences) < 1e-12


def test_bfloat16_crosses_the_wire(pool):
    for differences in pool.run(attention_difference, 4, 2, [2, 5], "bfloat16", world_size=2):
        assert max(differences) < 0.05

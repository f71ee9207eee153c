"""Which ranks draw the same: weights all of a stage, dropout those with the same positions."""

import pytest
from distributed_jobs import draws, draws_of_trainer


@pytest.mark.parametrize(
    ("sizes", "replicas"),
    [
        ({"tensor_model_parallel_size": 2}, [0, 0, 1, 1]),
        ({"context_parallel_size": 2}, [0, 1, 2, 3]),
        ({"pipeline_model_parallel_size": 2}, [0, 1, 0, 1]),
    ],
    ids=["tp2-dp2", "cp2-dp2", "pp2-dp2"],
)
def test_replicas_draw_the_same_weights_and_drop_other_places(pool, sizes, replicas):
    drawn = pool.run(draws, sizes, world_size=4)
    stages = [rank["stage"] for rank in drawn]
    of_tensor_ranks = [rank["tensor"] for rank in drawn]
    weights = [rank["weights"] for rank in drawn]
    dropout = [rank["dropout"] for rank in drawn]
    tracked = [rank["tracked"] for rank in drawn]
    for one in range(4):
        for other in range(4):
            assert (weights[one] == weights[other]) == (stages[one] == stages[other])
            same = stages[one] == stages[other] and replicas[one] == replicas[other]
            assert (dropout[one] == dropout[other]) == same
            same = same and of_tensor_ranks[one] == of_tensor_ranks[other]
            assert (tracked[one] == tracked[other]) == same


def test_a_trainer_draws_so(pool, setup):
    one, other = pool.run(draws_of_trainer, setup.arguments("--lora-rank=4"), world_size=2)
    assert one != other
    tensor = setup.arguments("--lora-rank=4", "--tensor-model-parallel-size=2")
    one, other = pool.run(draws_of_trainer, tensor, world_size=2)
    assert one == other

"""A layout that goes wrong is found: the step, the parameter and the rank are named."""

import pytest
from distributed_jobs import record
from distributed_layouts import Layout

from megatron_llava.parallel.recorded_steps import Tolerances, compare_steps, read_step

STRICT = Tolerances(values=1e-4, weights=1e-4, replicas=0)
BLOCK = "language_model.decoder.layers"


def steps_of(pool, setup, folder, layout, **spoilt):
    arguments = setup.arguments("--adam-eps=1e-4", *layout.flags, steps=3)
    pool.run(record, arguments, folder, world_size=layout.world_size, **spoilt)
    return [read_step(folder, step) for step in (1, 2, 3)]


@pytest.fixture(scope="module")
def right(pool, setup, tmp_path_factory):
    return steps_of(pool, setup, tmp_path_factory.mktemp("right") / "run", Layout())


@pytest.mark.parametrize(
    ("layout", "spoilt", "rank", "words"),
    [
        # Column-parallel: the second half of the rows belongs to the second rank.
        (
            Layout(tp=2),
            f"{BLOCK}.1.self_attention.linear_qkv.weight",
            1,
            [f"{BLOCK}.1.self_attention.linear_qkv.weight[48, ", "rank 1 of the second", "rank 0"],
        ),
        # The third layer of the model is the first of the second stage.
        (
            Layout(pp=2),
            f"{BLOCK}.0.mlp.linear_fc2.weight",
            1,
            [f"{BLOCK}.2.mlp.linear_fc2.weight[0, ", "rank 1 of the second layout", "rank 0 of"],
        ),
        # A weight that both ranks hold: they drift apart.
        (
            Layout(tp=2),
            f"{BLOCK}.0.pre_mlp_layernorm.weight",
            1,
            [
                "in the second layout ranks 0 and 1 differ in",
                "0.mlp.linear_fc1.layer_norm_weight[0]",
            ],
        ),
        (
            Layout(dp=2, pp=2),
            "image_newline",
            1,
            ["in the second layout ranks 0 and 1 differ in image_newline[0]"],
        ),
    ],
    ids=["tensor", "pipeline", "tensor-replicas", "data-replicas"],
)
def test_one_rank_that_goes_wrong_is_named(
    pool, setup, right, tmp_path, layout, spoilt, rank, words
):
    wrong = steps_of(pool, setup, tmp_path / "run", layout, spoilt=spoilt, rank=rank)
    compare_steps(right[0], wrong[0], STRICT)
    with pytest.raises(ValueError) as caught:
        compare_steps(right[1], wrong[1], STRICT)
    message = str(caught.value)
    assert all(word in message for word in words) and "\n" not in message, message


def test_delayed_parameters_are_recorded_in_time(pool, setup, right, tmp_path):
    """With --overlap-param-gather a step ends before its parameters have reached every rank."""
    layout = Layout(dp=2, distopt=True, grad_overlap=True, param_overlap=True, bucket=20_000)
    found = steps_of(pool, setup, tmp_path / "run", layout)
    for one, other in zip(right, found, strict=True):
        compare_steps(one, other, STRICT)

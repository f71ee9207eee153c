"""Emulated FP8 at parallel layouts: ranks share scales, and checkpoints take them along."""

import pytest
from distributed_jobs import train
from fp8_jobs import train_in_fp8

HISTORY = ["--fp8-amax-history-len=3", "--fp8-amax-compute-algo=max"]
TENSOR = ["--tensor-model-parallel-size=2", "--sequence-parallel"]
PIPELINE = ["--pipeline-model-parallel-size=2"]
FULL = ["--recompute-granularity=full", "--recompute-method=uniform", "--recompute-num-layers=1"]


@pytest.fixture(scope="module")
def one_rank(pool, setup):
    return pool.run(train_in_fp8, arguments(setup))[0]


@pytest.fixture(scope="module")
def tensor(pool, setup):
    return two_ranks(pool, setup, *TENSOR)


def arguments(setup, *flags, steps=4):
    return setup.arguments(*HISTORY, *flags, steps=steps, batch=2)


def two_ranks(pool, setup, *flags, steps=4):
    return pool.run(train_in_fp8, arguments(setup, *flags, steps=steps), world_size=2)


def test_tensor_parallel_ranks_share_their_scales(one_rank, tensor):
    """A sum in another order may round to another FP8 number, so the losses are near only."""
    first, second = tensor
    assert first["scales"] == second["scales"]
    assert first["losses"] == pytest.approx(one_rank["losses"], rel=2e-2)
    assert first["scales"].keys() == one_rank["scales"].keys()
    for place, rows in first["scales"].items():
        for row, expected in zip(rows, one_rank["scales"][place], strict=True):
            assert row[:2] == pytest.approx(expected[:2], rel=0.1)
            assert row[2] == pytest.approx(expected[2], rel=0.5)


def test_adapters_beside_fp8_at_a_layout_and_resumed(pool, setup, tmp_path):
    """Tensor-parallel ranks scale their own shares, so the losses are near one rank's only."""
    flags = ["--bf16", "--fp8-format=hybrid", "--fp8-emulation", "--fp8-recipe=tensorwise"]
    flags += ["--lora-rank=4", "--lora-dropout=0"]
    saving = [f"--save={tmp_path}", f"--load={tmp_path}", "--save-interval=2"]

    def steps(*more, ranks=1):
        given = setup.arguments(*flags, *more, steps=4, batch=2)
        return pool.run(train, given, world_size=ranks)[0]["steps"]

    expected, found = steps(), steps(*TENSOR, ranks=2)
    for step, reference in zip(found, expected, strict=True):
        assert step["lm loss"] == pytest.approx(reference["lm loss"], rel=2e-2)
    steps(*TENSOR, *saving, "--exit-interval=2", ranks=2)
    assert steps(*TENSOR, *saving, ranks=2) == found[2:]


def test_data_parallel_ranks_share_their_scales(pool, setup, one_rank):
    first, second = two_ranks(pool, setup, "--use-distributed-optimizer", "--overlap-grad-reduce")
    assert first["scales"] == second["scales"] and first["scales"] != one_rank["scales"]
    assert first["shards"] == second["shards"]
    # A second microbatch on one rank has the scales that the first one made.
    assert first["losses"] == pytest.approx(one_rank["losses"], rel=2e-2)


def test_a_pipeline_is_one_rank_and_recomputation_changes_no_bit(pool, setup, one_rank):
    """Its first stage runs two forwards before the recomputation of the first of them."""
    plain = two_ranks(pool, setup, *PIPELINE)
    recomputed = two_ranks(pool, setup, *PIPELINE, *FULL)
    assert plain == recomputed
    # The norm of the gradient is summed in another order, which moves the weights after a step.
    assert plain[0]["losses"][0] == one_rank["losses"][0]
    assert plain[0]["losses"] == pytest.approx(one_rank["losses"], rel=2e-2)
    assert plain[0]["scales"].keys().isdisjoint(plain[1]["scales"])
    together = plain[0]["scales"] | plain[1]["scales"]
    assert together.keys() == one_rank["scales"].keys()


def test_a_resumed_run_is_the_same_bit_by_bit_and_moves_to_another_layout(
    pool, setup, tensor, tmp_path
):
    saving = [f"--save={tmp_path}", f"--load={tmp_path}", "--save-interval=2"]
    started = two_ranks(pool, setup, *TENSOR, *saving, "--exit-interval=2")
    elsewhere = [f"--load={tmp_path}", "--no-load-optim", "--lr-warmup-iters=1", *PIPELINE]
    moved = two_ranks(pool, setup, *elsewhere, steps=2)
    assert moved[0]["scales"] | moved[1]["scales"] == started[0]["scales"]
    resumed = two_ranks(pool, setup, *TENSOR, *saving)
    for rank in range(2):
        assert resumed[rank]["losses"] == tensor[rank]["losses"][2:]
        assert resumed[rank]["scales"] == tensor[rank]["scales"]
        assert resumed[rank]["shards"] == tensor[rank]["shards"]

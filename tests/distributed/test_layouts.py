"""Every parallel layout trains as one rank does."""

import pytest
from distributed_jobs import train

LAYOUTS = {
    "tp2": (2, ["--tensor-model-parallel-size=2"]),
    "tp2-sp": (2, ["--tensor-model-parallel-size=2", "--sequence-parallel"]),
    "pp2": (2, ["--pipeline-model-parallel-size=2"]),
    "pp2-uneven": (
        2,
        ["--pipeline-model-parallel-size=2", "--decoder-first-pipeline-num-layers=1"],
    ),
    # Columns that pad the vocabulary make the output layer dear, and change nothing else.
    "pp2-auto": (
        2,
        [
            "--pipeline-model-parallel-size=2",
            "--pipeline-balance=auto",
            "--make-vocab-size-divisible-by=65536",
        ],
    ),
    "pp3-auto": (3, ["--pipeline-model-parallel-size=3", "--pipeline-balance=auto"]),
    "tp2-pp2": (4, ["--tensor-model-parallel-size=2", "--pipeline-model-parallel-size=2"]),
    "dp2": (2, []),
    "dp2-distributed-optimizer": (2, ["--use-distributed-optimizer"]),
    "dp2-overlaps": (
        2,
        [
            "--use-distributed-optimizer",
            "--overlap-grad-reduce",
            "--overlap-param-gather",
            "--ddp-bucket-size=20000",
        ],
    ),
    "dp4-overlaps": (
        4,
        ["--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather"],
    ),
}


@pytest.fixture(scope="module")
def one_rank(pool, setup):
    return pool.run(train, setup.arguments())[0]["steps"]


def assert_same_steps(steps, expected, tolerance):
    assert [step["iteration"] for step in steps] == [step["iteration"] for step in expected]
    for step, reference in zip(steps, expected, strict=True):
        for name in ("lm loss", "grad norm"):
            assert step[name] == pytest.approx(reference[name], rel=tolerance), (name, step)
        assert step["lr"] == reference["lr"]
        assert step["samples"] == reference["samples"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_equals_one_rank(pool, setup, one_rank, layout):
    world_size, flags = LAYOUTS[layout]
    results = pool.run(train, setup.arguments(*flags), world_size=world_size)
    assert_same_steps(results[0]["steps"], one_rank, 1e-4)


@pytest.mark.parametrize(("layout", "expected"), [("pp2-auto", [3, 1]), ("pp3-auto", [1, 2, 1])])
def test_a_run_builds_the_balanced_stages(pool, setup, layout, expected):
    world_size, flags = LAYOUTS[layout]
    arguments = setup.arguments(*flags, steps=3)
    results = pool.run(train, arguments, world_size=world_size, with_weights=True)
    block = "language_model.decoder.layers."
    for result, layers in zip(results, expected, strict=True):
        built = {name.split(block)[1].split(".")[0] for name in result["weights"] if block in name}
        assert len(built) == layers, result["messages"]
        (message,) = [text for text in result["messages"] if "--pipeline-balance" in text]
        assert f"{str(expected)[1:-1]} of 4 layers" in message


@pytest.mark.parametrize("layout", ["tp2-sp", "tp2-pp2"])
def test_tied_embeddings(pool, setup, layout):
    world_size, flags = LAYOUTS[layout]
    expected = pool.run(train, setup.arguments(tied=True))[0]["steps"]
    steps = pool.run(train, setup.arguments(*flags, tied=True), world_size=world_size)[0]["steps"]
    assert_same_steps(steps, expected, 1e-4)


def test_losses_fall(one_rank):
    assert one_rank[-1]["lm loss"] < 0.95 * one_rank[0]["lm loss"]


def test_packs_without_images_on_one_rank_do_not_hang(pool, setup):
    """With overlapped reduction every rank must produce every gradient in every microbatch.

    A window of one sample makes every sample a pack: a quarter of them has no image.
    """
    one_sample_packs = "--packing-window=1"
    expected = pool.run(train, setup.arguments(one_sample_packs))[0]["steps"]
    world_size, flags = LAYOUTS["dp2-overlaps"]
    results = pool.run(train, setup.arguments(one_sample_packs, *flags), world_size=world_size)
    assert_same_steps(results[0]["steps"], expected, 1e-4)


@pytest.mark.parametrize(
    "parts", ["mm_mlp_adapter", "mm_language_model", "mm_mlp_adapter,mm_vision_tower"]
)
def test_frozen_parts_under_tensor_and_pipeline_parallelism(pool, setup, parts):
    tunable = f"--mm-tunable-parts={parts}"
    expected = pool.run(train, setup.arguments(tunable))[0]["steps"]
    world_size, flags = LAYOUTS["tp2-pp2"]
    results = pool.run(train, setup.arguments(tunable, *flags), world_size=world_size)
    assert_same_steps(results[0]["steps"], expected, 1e-4)


def test_bfloat16_with_distributed_optimizer_stays_near_float32(pool, setup, one_rank):
    world_size, flags = LAYOUTS["dp2-overlaps"]
    steps = pool.run(train, setup.arguments("--bf16", *flags), world_size=world_size)[0]["steps"]
    assert_same_steps(steps, one_rank, 3e-2)


@pytest.mark.parametrize("reduction", ["sample", "microbatch-mean"])
def test_other_reductions_of_the_loss_at_another_layout(pool, setup, one_rank, reduction):
    flag = f"--loss-reduction={reduction}"
    expected = pool.run(train, setup.arguments(flag))[0]["steps"]
    assert expected[0]["lm loss"] != pytest.approx(one_rank[0]["lm loss"], rel=1e-4)
    world_size, layout = LAYOUTS["tp2-pp2"]
    steps = pool.run(train, setup.arguments(flag, *layout), world_size=world_size)[0]["steps"]
    assert_same_steps(steps, expected, 1e-4)
    steps = pool.run(train, setup.arguments(flag), world_size=2)[0]["steps"]
    assert_same_steps(steps, expected, 1e-4)


@pytest.mark.parametrize(
    "flags",
    [
        ["--recompute-activations", "--recompute-vision"],
        [
            "--recompute-granularity=full",
            "--recompute-method=uniform",
            "--recompute-num-layers=1",
            "--recompute-vision",
        ],
    ],
    ids=["selective", "full"],
)
def test_recomputation_with_tensor_and_sequence_parallelism(pool, setup, one_rank, flags):
    world_size, layout = LAYOUTS["tp2-sp"]
    steps = pool.run(train, setup.arguments(*layout, *flags), world_size=world_size)[0]["steps"]
    assert_same_steps(steps, one_rank, 1e-4)


def test_the_held_out_loss_is_the_same_at_every_layout(pool, setup):
    flags = [f"--valid-data-path={setup.store}", "--eval-interval=5"]
    expected = pool.run(train, setup.arguments(*flags))[0]["validations"]
    assert len(expected) == 1
    for layout in ("tp2-pp2", "dp4-overlaps"):
        world_size, more = LAYOUTS[layout]
        result = pool.run(train, setup.arguments(*flags, *more), world_size=world_size)
        assert result[0]["validations"] == pytest.approx(expected, rel=1e-4)

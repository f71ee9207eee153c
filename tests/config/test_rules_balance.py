"""Rules about --pipeline-balance auto."""

import pytest

from megatron_llava.config.validate import validate

AUTO = {"pipeline_balance": "auto", "pipeline_model_parallel_size": 2, "global_batch_size": 2}
FULL = {"recompute_granularity": "full", "recompute_num_layers": 2}
STAGES_EACH = "num_virtual_stages_per_pipeline_rank"


@pytest.mark.parametrize(
    ("changes", "world_size"),
    [
        (AUTO, 2),
        # Balanced stages need no even shares.
        ({**AUTO, "pipeline_model_parallel_size": 3}, 3),
        ({**AUTO, **FULL, "recompute_method": "block", "num_layers": 5}, 2),
        ({**AUTO, **FULL, "recompute_method": "uniform", "num_layers": 10}, 2),
        ({**AUTO, STAGES_EACH: 2, "num_layers": 6}, 2),
        ({**AUTO, **FULL, "recompute_method": "uniform", STAGES_EACH: 2, "num_layers": 12}, 2),
    ],
)
def test_accepted(make_config, changes, world_size):
    config = make_config(**changes)
    validate(config, world_size)
    assert_there_is_a_placement(config)


def assert_there_is_a_placement(config):
    from megatron_llava.data.pack_sizes import PackSizes
    from megatron_llava.parallel.pipeline_cost import balanced

    sizes = PackSizes(packs=1, views=1, rows=1, attended=1, loss_rows=1)
    placed, _ = balanced(config, sizes)
    assert placed.parallel.decoder_first_pipeline_num_layers >= 1


@pytest.mark.parametrize(
    ("changes", "world_size", "expected"),
    [
        (
            {"pipeline_model_parallel_size": 1},
            2,
            "--pipeline-balance auto needs --pipeline-model-parallel-size 2 or more, not 1",
        ),
        (
            {"decoder_last_pipeline_num_layers": 2},
            2,
            "--pipeline-balance auto contradicts --decoder-last-pipeline-num-layers 2",
        ),
        (
            {"decoder_first_pipeline_num_layers": 1, "decoder_last_pipeline_num_layers": 3},
            2,
            "--pipeline-balance auto contradicts --decoder-first-pipeline-num-layers 1",
        ),
        (
            {"pipeline_model_parallel_size": 5},
            5,
            "--num-layers 4|--pipeline-model-parallel-size 5|--pipeline-balance auto|fewer stages",
        ),
        (
            {"num_layers_per_virtual_pipeline_stage": 1},
            2,
            "--num-layers-per-virtual-pipeline-stage 1|--pipeline-balance auto|"
            "--num-virtual-stages-per-pipeline-rank",
        ),
        (
            {STAGES_EACH: 3},
            2,
            "--pipeline-balance auto: --num-layers 4|--num-virtual-stages-per-pipeline-rank 3",
        ),
        (
            {STAGES_EACH: 4},
            2,
            "--num-layers 4 is less than --pipeline-model-parallel-size 2 times 4 virtual stages",
        ),
        (
            {**FULL, "recompute_method": "uniform", "num_layers": 5},
            2,
            "--pipeline-balance auto with --recompute-method uniform: --num-layers 5 cannot be "
            "divided by --recompute-num-layers 2",
        ),
        (
            {**FULL, "recompute_method": "uniform", STAGES_EACH: 2, "num_layers": 10},
            2,
            "--num-layers 10 / 2 virtual stages = 5 cannot be divided by --recompute-num-layers 2",
        ),
        (
            {**FULL, "recompute_method": "block", "recompute_num_layers": 3},
            2,
            "--recompute-num-layers 3|2 layers of a pipeline stage",
        ),
        (
            {**FULL, "recompute_method": "block", STAGES_EACH: 2, "num_layers": 6},
            2,
            "--recompute-num-layers 2|1 layers of a pipeline stage",
        ),
        ({"pipeline_balance": "best"}, 2, "--pipeline-balance|'best'|even, auto"),
    ],
)
def test_refused(make_config, changes, world_size, expected):
    with pytest.raises(ValueError) as raised:
        validate(make_config(**{**AUTO, **changes}), world_size)
    message = str(raised.value)
    for part in expected.split("|"):
        assert part in message, message
    assert "\n" not in message

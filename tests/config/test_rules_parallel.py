"""Rules about virtual pipeline stages, context parallelism and the tower's parallelism."""

import pytest

from megatron_llava.config.rules_pipeline import layers_of_stages
from megatron_llava.config.validate import validate

LAYERS_EACH, STAGES_EACH = (
    "num_layers_per_virtual_pipeline_stage",
    "num_virtual_stages_per_pipeline_rank",
)
PP2 = {"pipeline_model_parallel_size": 2, "num_layers": 8, "global_batch_size": 4}
PP4 = {**PP2, "pipeline_model_parallel_size": 4}


@pytest.mark.parametrize(
    ("changes", "world_size", "stages"),
    [
        ({**PP2, LAYERS_EACH: 2}, 2, 2),
        ({**PP2, LAYERS_EACH: 1}, 2, 4),
        ({**PP2, LAYERS_EACH: 4}, 2, None),
        ({**PP2, STAGES_EACH: 2}, 2, 2),
        ({**PP2, STAGES_EACH: 1}, 2, None),
        ({**PP4, STAGES_EACH: 2, "no_overlap_p2p_communication": True}, 4, 2),
        ({**PP2, STAGES_EACH: 2, "decoder_first_pipeline_num_layers": 2}, 2, 2),
    ],
)
def test_virtual_stages(make_config, changes, world_size, stages):
    config = make_config(**changes)
    validate(config, world_size)
    assert config.virtual_stages == stages


@pytest.mark.parametrize(
    ("changes", "world_size", "parts"),
    [
        ({**PP2, LAYERS_EACH: 2, STAGES_EACH: 2}, 2, f"{LAYERS_EACH} 2|{STAGES_EACH} 2|give one"),
        ({LAYERS_EACH: 2}, 1, f"{LAYERS_EACH} 2|--pipeline-model-parallel-size 2 or more, not 1"),
        ({**PP2, LAYERS_EACH: 3}, 2, f"{LAYERS_EACH} 3|4 layers of a rank|--num-layers 8"),
        ({**PP2, STAGES_EACH: 3}, 2, f"{STAGES_EACH} 3|4 layers of a rank"),
        (
            {**PP2, LAYERS_EACH: 1, "decoder_first_pipeline_num_layers": 2},
            2,
            f"{LAYERS_EACH} 1|uneven|{STAGES_EACH}",
        ),
        (
            {**PP2, STAGES_EACH: 2, "decoder_first_pipeline_num_layers": 3},
            2,
            f"{STAGES_EACH} 2|3 layers of a rank",
        ),
        # Core's schedule would give wrong gradients here and not say so.
        (
            {**PP2, LAYERS_EACH: 2, "no_overlap_p2p_communication": True},
            2,
            "no_overlap_p2p_communication|pipeline-model-parallel-size 3 or more, not 2",
        ),
        ({**PP2, "no_overlap_p2p_communication": True}, 2, "virtual pipeline stages|drop it"),
        (
            {**PP2, STAGES_EACH: 1, "no_overlap_p2p_communication": True},
            2,
            "no-overlap-p2p-communication|two or more virtual pipeline stages|drop it",
        ),
        (
            {**PP2, LAYERS_EACH: 4, "no_overlap_p2p_communication": True},
            2,
            "no-overlap-p2p-communication|two or more virtual pipeline stages|drop it",
        ),
        (
            {
                **PP2,
                STAGES_EACH: 2,
                "decoder_first_pipeline_num_layers": 4,
                "decoder_last_pipeline_num_layers": 4,
            },
            2,
            "--decoder-first-pipeline-num-layers 4|say the same twice|give one",
        ),
        (
            {
                **PP4,
                "decoder_first_pipeline_num_layers": 4,
                "decoder_last_pipeline_num_layers": 4,
            },
            4,
            "leaves 0 of --num-layers 8 for 2 other|at least one for each",
        ),
        (
            {
                **PP2,
                "recompute_granularity": "full",
                "recompute_method": "uniform",
                "recompute_num_layers": 3,
            },
            2,
            "--recompute-num-layers 3 does not divide the 4 layers|or block",
        ),
        (
            {**PP4, STAGES_EACH: 2, "global_batch_size": 6},
            4,
            "6 microbatches|multiple of --pipeline-model-parallel-size 4|--global-batch-size",
        ),
    ],
)
def test_refused(make_config, changes, world_size, parts):
    with pytest.raises(ValueError) as caught:
        validate(make_config(**changes), world_size)
    message = str(caught.value)
    for part in parts.split("|"):
        assert part in message or part.replace("_", "-") in message, (part, message)
    assert "\n" not in message


CP2 = {"context_parallel_size": 2}
TP2 = {"tensor_model_parallel_size": 2}
ENGINE = {"transformer_impl": "transformer_engine", "device": "cuda"}


@pytest.mark.parametrize(
    ("changes", "world_size"),
    [
        (CP2, 2),
        ({**CP2, **TP2, "cp_comm_type": "a2a", "sequence_parallel": True}, 8),
        ({**CP2, **ENGINE, "cp_comm_type": "p2p"}, 2),
        # Keys and values pass by each other: heads need not divide.
        ({"context_parallel_size": 16, **ENGINE}, 16),
        ({"vision_parallel": "data", **TP2, "vision_num_attention_heads": 1}, 2),
        ({"attention_backend": "unfused"}, 1),
        ({"attention_backend": "flash", "device": "cuda", "bf16": True}, 1),
        ({"attention_backend": "fused", **ENGINE}, 1),
        ({"attention_backend": "flash", "cp_comm_type": "a2a", **CP2, **ENGINE}, 2),
        ({"vision_parallel": "data", **TP2, "vision_ffn_hidden_size": 65}, 2),
    ],
)
def test_valid_shares(make_config, changes, world_size):
    validate(make_config(**changes), world_size)


@pytest.mark.parametrize(
    ("changes", "world_size", "parts"),
    [
        ({"context_parallel_size": 3}, 3, "num_attention_heads 8|leaves 8 heads|context_parallel"),
        ({"context_parallel_size": 8, **TP2}, 16, "leaves 4 heads|--context-parallel-size 8"),
        (CP2, 3, "3 ranks|--context-parallel-size 2 = 2|start a multiple of 2"),
        ({**CP2, "cp_comm_type": "p2p"}, 2, "p2p needs --transformer-impl transformer_engine"),
        ({"cp_comm_type": "a2a"}, 1, "--cp-comm-type a2a|--context-parallel-size is 1"),
        ({**TP2, "vision_num_attention_heads": 1}, 2, "--vision-parallel data"),
        ({"attention_backend": "fused"}, 1, "fused needs --transformer-impl transformer_engine"),
        ({"attention_backend": "flash", "device": "cpu"}, 1, "needs a GPU|--device is cpu"),
        ({"attention_backend": "flash", "device": "cuda"}, 1, "has no float32|--bf16"),
        (
            {"attention_backend": "fused", "cp_comm_type": "a2a", **CP2, **ENGINE},
            2,
            "--attention-backend fused with --cp-comm-type a2a|auto, flash, local",
        ),
    ],
)
def test_refused_shares(make_config, changes, world_size, parts):
    test_refused(make_config, changes, world_size, parts)


def test_layers_of_stages(make_config):
    changes = {**PP4, "decoder_first_pipeline_num_layers": 1, "decoder_last_pipeline_num_layers": 3}
    assert layers_of_stages(make_config(**changes)) == [1, 2, 2, 3]
    assert layers_of_stages(make_config(**PP4)) == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("on", "flag"),
    [
        ({"cross_image_attention": True}, "--cross-image-attention"),
        ({"temporal_encoder_layers": 2}, "--temporal-encoder-layers 2"),
    ],
    ids=["images", "frames"],
)
@pytest.mark.parametrize(
    ("changes", "other"),
    [
        ({"context_parallel_size": 2}, "--context-parallel-size 2"),
        (
            {"tensor_model_parallel_size": 2, "vision_parallel": "data"},
            "--vision-parallel data",
        ),
        ({"lora_rank": 4}, "--lora-rank 4"),
        ({"hidden_size": 60, "kv_channels": 8}, "--num-attention-heads 8"),
    ],
)
def test_all_features_that_see_each_other_are_on_a_rank(make_config, on, flag, changes, other):
    with pytest.raises(ValueError) as caught:
        validate(make_config(**on, **changes), 2)
    assert all(part in str(caught.value) for part in (flag, other)), caught.value


def test_frames_of_an_encoder_that_is_off(make_config):
    with pytest.raises(ValueError, match="--temporal-encoder-max-frames 8 .*-encoder-layers"):
        validate(make_config(temporal_encoder_max_frames=8), 1)
    validate(make_config(temporal_encoder_max_frames=8, temporal_encoder_layers=1), 1)

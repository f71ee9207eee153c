"""Rules about losses, and about flags that say how to write and read checkpoints."""

import pytest

from megatron_llava.config.validate import validate

SAVE = {"save": "out", "save_interval": 5}
DISTRIBUTED = {"use_distributed_optimizer": True}
RESHARDABLE = {"dist_ckpt_optim_fully_reshardable": True}
ALIGN = {"align_loss_coeff": 1.0, "mm_tunable_parts": ("mm_mlp_adapter",)}
ALIGN_AND_TRAIN = {**ALIGN, "mm_tunable_parts": ("mm_mlp_adapter", "mm_language_model")}
PARALLEL_LOAD = {"ckpt_fully_parallel_load": True}


@pytest.mark.parametrize(
    "changes",
    [
        {**RESHARDABLE, **DISTRIBUTED, **SAVE},
        {**PARALLEL_LOAD, "load": "in"},
        {**PARALLEL_LOAD, "pretrained_checkpoint": "in"},
        ALIGN_AND_TRAIN,
        {**ALIGN, "text_loss_coeff": 0.0, "align_loss_pooling": "token"},
    ],
)
def test_flags_that_do_something_pass(make_config, changes):
    validate(make_config(**changes), 1)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({**RESHARDABLE, **DISTRIBUTED}, "--dist-ckpt-optim-fully-reshardable|--save, which"),
        (
            {**RESHARDABLE, **SAVE},
            "--dist-ckpt-optim-fully-reshardable|--use-distributed-optimizer, which is not given",
        ),
        ({"text_loss_coeff": 0.0}, "--text-loss-coeff 0|--align-loss-coeff"),
        (
            {**ALIGN, "text_loss_coeff": 0.0, "loss_function": "a:b"},
            "--loss-function a:b|--text-loss-coeff 0",
        ),
        (
            {"loss_spike_factor": 3.0, "loss_function": "a:b"},
            "--loss-spike-factor 3|--loss-function a:b",
        ),
        ({"align_loss_pooling": "token"}, "--align-loss-pooling token|--align-loss-coeff"),
        ({"align_loss_coeff": 2.0}, "--align-loss-coeff 2|--mm-tunable-parts|mm_vision_tower"),
        (
            {"align_loss_coeff": 2.0, "mm_tunable_parts": ("mm_language_model",)},
            "--align-loss-coeff 2|mm_mlp_adapter",
        ),
        (
            {**ALIGN_AND_TRAIN, "text_loss_coeff": 0.0},
            "--text-loss-coeff 0|mm_language_model|--mm-tunable-parts",
        ),
        (PARALLEL_LOAD, "--ckpt-fully-parallel-load|--load or --pretrained-checkpoint"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(make_config, changes, parts):
    with pytest.raises(ValueError) as caught:
        validate(make_config(**changes), 1)
    message = str(caught.value)
    assert all(part in message for part in parts.split("|")), message
    assert "\n" not in message


def test_tokens_are_not_paired_across_ranks(make_config):
    config = make_config(**ALIGN, align_loss_pooling="token", context_parallel_size=2)
    with pytest.raises(ValueError, match="--align-loss-pooling token .*--context-parallel-size 2"):
        validate(config, 2)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"fp16": True, "bf16": True}, "--bf16|--fp16|give one"),
        ({"tf32": True, "device": "cpu"}, "--tf32|--device is cpu"),
        ({"group_by_modality_length": True}, "--group-by-modality-length|--global-batch-size"),
        ({"drop_last": True}, "--drop-last|--global-batch-size"),
        ({"loss_scale": 8.0}, "--loss-scale|--fp16"),
        ({"hysteresis": 3}, "--hysteresis|--fp16"),
        (
            {"fp16": True, "loss_scale": 8.0, "min_loss_scale": 2.0},
            "--min-loss-scale|--loss-scale 8",
        ),
        (
            {"fp16": True, "initial_loss_scale": 1.0, "min_loss_scale": 2.0},
            "--initial-loss-scale 1|--min-loss-scale 2",
        ),
        ({"fp16": True, "fp8_format": "hybrid", "fp8_emulation": True}, "--fp8-format|--bf16"),
        ({"fp16": True, "grad_reduce_in_bf16": True}, "--grad-reduce-in-bf16|--bf16"),
    ],
)
def test_scales_that_contradict_are_refused(make_config, changes, parts):
    with pytest.raises(ValueError) as caught:
        validate(make_config(**changes), 1)
    assert all(part in str(caught.value) for part in parts.split("|")), caught.value
    assert "\n" not in str(caught.value)


def test_float16_passes(make_config):
    validate(make_config(fp16=True, hysteresis=3, initial_loss_scale=2.0**16), 1)
    validate(make_config(fp16=True, loss_scale=128.0), 1)

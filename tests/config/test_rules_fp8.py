import pytest

from megatron_llava.config.validate import validate

ENGINE = {
    "fp8_format": "hybrid",
    "bf16": True,
    "device": "cuda",
    "transformer_impl": "transformer_engine",
}
EMULATION = {"fp8_format": "hybrid", "bf16": True, "fp8_emulation": True}
TENSORWISE = {"fp8_recipe": "tensorwise"}
TP2 = {"tensor_model_parallel_size": 2, "ffn_hidden_size": 128}
ENDS = {"first_last_layers_bf16": True}


@pytest.mark.parametrize(
    "changes",
    [
        {**EMULATION, "device": "cpu"},
        {**EMULATION, "device": "cuda", "fp8_format": "e4m3", "fp8_recipe": "tensorwise"},
        {**EMULATION, **TENSORWISE, "lora_rank": 4},
        {**EMULATION, "fp8_margin": 1, "fp8_amax_history_len": 1024},
        {**EMULATION, **ENDS, "num_layers": 3},
        {**EMULATION, **ENDS, "num_layers": 4, "num_layers_at_end_in_bf16": 0},
        {**ENGINE, "fp8_amax_history_len": 16, "fp8_amax_compute_algo": "max"},
        {**ENGINE, **ENDS, "num_layers": 4, "fp8_recipe": "tensorwise"},
    ],
)
def test_fp8_that_there_is(make_config, changes):
    validate(make_config(**changes), 1)


@pytest.mark.proves("D17")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fp8_emulation": True}, "--fp8-emulation needs --fp8-format"),
        (ENDS, "--first-last-layers-bf16 needs --fp8-format"),
        ({"fp8_margin": 1}, "--fp8-margin 1 needs --fp8-format"),
        ({"num_layers_at_end_in_bf16": 2}, "--num-layers-at-end-in-bf16 2 needs --fp8-format"),
        (
            {**ENGINE, "transformer_impl": "local"},
            "--fp8-format hybrid|transformer_engine, not local|--fp8-emulation",
        ),
        (
            {**ENGINE, "device": "cpu", "transformer_impl": "local"},
            "--fp8-format hybrid needs a GPU|--fp8-emulation",
        ),
        (
            {**ENGINE, "fp8_emulation": True},
            "--fp8-emulation|--transformer-impl local, not transformer_engine",
        ),
        (
            {**ENGINE, "hidden_size": 72, "num_attention_heads": 9, "num_query_groups": 9},
            "--hidden-size have 72 of --tensor-model-parallel-size 1",
        ),
        (
            {**ENGINE, "ffn_hidden_size": 56},
            "--fp8-format hybrid needs sizes that are multiples of 16|--ffn-hidden-size have 56",
        ),
        (
            {**ENGINE, "fp8_recipe": "blockwise", "sequence_parallel": True, **TP2},
            "--fp8-recipe blockwise with --sequence-parallel|--hidden-size is",
        ),
        ({**EMULATION, "bf16": False}, "--fp8-format hybrid needs --bf16"),
        (
            {**EMULATION, "lora_rank": 4},
            "--fp8-format hybrid with --lora-rank 4: |recipe delayed|--fp8-recipe tensorwise",
        ),
        (
            {**EMULATION, **TENSORWISE, "lora_rank": 4, "load_in_4bit": True},
            "--fp8-format hybrid with --load-in-4bit|drop one",
        ),
        ({**ENGINE, **TENSORWISE, "lora_rank": 4}, "--lora-rank 4|--transformer-impl local"),
        ({**EMULATION, "fp8_recipe": "blockwise"}, "--fp8-emulation|--fp8-recipe blockwise"),
        (
            {**EMULATION, "fp8_recipe": "tensorwise", "fp8_amax_compute_algo": "max"},
            "--fp8-amax-compute-algo max|--fp8-recipe delayed, not tensorwise",
        ),
        (
            {**EMULATION, "num_layers_at_start_in_bf16": 2},
            "--num-layers-at-start-in-bf16 2 needs --first-last-layers-bf16",
        ),
        ({**ENGINE, **ENDS}, "--first-last-layers-bf16|--fp8-recipe tensorwise|not delayed"),
        (
            {**EMULATION, **ENDS, "num_layers": 4, "num_layers_at_start_in_bf16": 5},
            "--num-layers-at-start-in-bf16 5|--num-layers 4|--pipeline-model-parallel-size 1",
        ),
        (
            {**EMULATION, **ENDS, "num_layers": 2},
            "--num-layers-at-start-in-bf16 1|--num-layers-at-end-in-bf16 1|--num-layers 2",
        ),
    ],
)
def test_fp8_that_there_is_not(make_config, changes, words):
    config = make_config(**changes)
    with pytest.raises(ValueError) as caught:
        validate(config, config.parallel.tensor_model_parallel_size)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words.split("|")), message

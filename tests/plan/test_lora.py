"""Adapter parameters, counted over the linears of a transformers model and as peft prints them."""

import pytest
import torch
import transformers

from megatron_llava.config.model_yaml import fill_named_model
from megatron_llava.config.run import RunConfig
from megatron_llava.plan.lora import adapter_parameters


def named(name: str, **changes) -> RunConfig:
    return fill_named_model(RunConfig().with_values(changes, "flag"), name)


@pytest.mark.parametrize("name", ["vicuna-7b", "mistral-7b"])
def test_two_matrices_beside_each_projection(name):
    config = named(f"llava-next-{name}")
    language = config.language
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                hidden_size=language.hidden_size,
                intermediate_size=language.ffn_hidden_size,
                num_hidden_layers=2,
                num_attention_heads=language.num_attention_heads,
                num_key_value_heads=language.num_query_groups,
            )
        )
    layers = model.model.layers
    linears = [m for m in layers.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linears) == 14
    expected = sum(16 * (m.in_features + m.out_features) for m in linears)
    assert 2 * adapter_parameters(config, 16) == expected


def test_the_numbers_that_are_known_of_llama_7b():
    config = named("llava-next-vicuna-7b")
    assert 32 * adapter_parameters(config, 16) == 39_976_960
    assert 32 * adapter_parameters(config, 32) == 79_953_920
    assert adapter_parameters(config, None) == 0


def test_tensor_parallel_ranks_share_one_side_of_each():
    whole = adapter_parameters(named("llava-next-vicuna-7b"), 8)
    half = adapter_parameters(named("llava-next-vicuna-7b", tensor_model_parallel_size=2), 8)
    hidden, ffn = 4096, 11008
    assert whole - half == 8 * (4 * hidden + 3 * ffn) // 2

"""What learns in a run, and how many parameters that are."""

import pytest
import torch
import transformers

from megatron_llava.config.model_yaml import fill_named_model
from megatron_llava.config.run import RunConfig
from megatron_llava.config.training import TUNABLE_PARTS, part_of
from megatron_llava.observe.parameters import part_parameters
from megatron_llava.parallel.trained import trained


def learning_parameters(name: str, layers: int, **changes) -> dict[str, int]:
    """Parameters that learn, by name, of a published model with so many layers."""
    config = fill_named_model(RunConfig().with_values(changes, "flag"), name)
    config = config.with_adapter_defaults()
    parameters = part_parameters(config, layers=layers, first=True, last=True)
    return {p.name: p.numel for p in parameters if trained(config).learns(p.name)}


@pytest.mark.parametrize("name", ["vicuna-7b", "mistral-7b"])
def test_adapters_are_two_matrices_beside_each_projection(name):
    language = fill_named_model(RunConfig(), f"llava-next-{name}").language
    sizes = transformers.LlamaConfig(
        hidden_size=language.hidden_size,
        intermediate_size=language.ffn_hidden_size,
        num_hidden_layers=2,
        num_attention_heads=language.num_attention_heads,
        num_key_value_heads=language.num_query_groups,
    )
    with torch.device("meta"):
        layers = transformers.LlamaForCausalLM(sizes).model.layers
    linears = [m for m in layers.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linears) == 14
    expected = sum(16 * (m.in_features + m.out_features) for m in linears)
    found = learning_parameters(f"llava-next-{name}", 2, lora_rank=16)
    assert sum(count for name, count in found.items() if ".lora." in name) == expected


def test_the_number_that_peft_prints_of_a_llama_7b():
    found = learning_parameters("llava-next-vicuna-7b", 32, lora_rank=16)
    assert sum(count for name, count in found.items() if ".lora." in name) == 39_976_960
    # Beside them the projector and the newline.
    others = {name for name in found if ".lora." not in name}
    assert others - {"image_newline"} == {n for n in others if n.startswith("vision_projection.")}
    assert "image_newline" in others


@pytest.mark.parametrize("part", TUNABLE_PARTS)
def test_a_part_alone(part):
    found = learning_parameters("llava-next-qwen1.5-0.5b", 2, mm_tunable_parts=(part,))
    assert found and {part_of(name) for name in found} == {part}

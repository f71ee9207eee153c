"""The rows of adapters: Megatron's factors beside a fused weight, and those of PEFT.

PEFT's names are those of the adapted linear in the hub layout, with `lora_A` and `lora_B` behind.
"""

from __future__ import annotations

from typing import Any

from megatron_llava.config.lora import LoraConfig
from megatron_llava.convert.families import text_layer
from megatron_llava.convert.rules import (
    REPLICATED,
    ROW,
    STACKED_ROW,
    Rule,
    SomeParts,
    Stack,
    for_layers,
)

TOWER = "vision_model."
_PROJECTOR = "vision_projection."
_ADAPTER = ".lora."


def adapter_rules(mapping: dict[str, Any], lora: LoraConfig) -> list[Rule]:
    """The rows of the adapters of every layer of the model that `mapping` describes."""
    layer = [row for rule in text_layer(mapping) for row in _beside(rule, lora)]
    return for_layers(layer, mapping["num_layers"])


def is_adapter_part(name: str) -> bool:
    """Whether a checkpoint of adapters holds a Megatron parameter whatever was trained."""
    return _ADAPTER in name or name.startswith(_PROJECTOR) or name == "image_newline"


def _beside(rule: Rule, lora: LoraConfig) -> list[Rule]:
    """The rows of the adapter beside the weight of a row, if it has one."""
    linears = [name.split(".")[-2] for name in rule.hf]
    stored = tuple(i for i, name in enumerate(linears) if name in lora.lora_target_modules)
    if not stored or not rule.megatron.endswith(".weight"):
        return []
    rank, inputs = lora.lora_rank, rule.hf_shapes[0][1]
    names = [rule.hf[number].removesuffix("weight") for number in stored]
    shapes = tuple((outputs, rank) for outputs, _ in rule.hf_shapes)
    adapter = rule.megatron.removesuffix(".weight") + _ADAPTER
    split_inputs = rule.tensor_parallel == ROW
    return [
        Rule(
            adapter + "a",
            tuple(name + "lora_A.weight" for name in names),
            Stack(),
            ((rank, inputs),) * len(stored),
            STACKED_ROW if split_inputs else REPLICATED,
        ),
        Rule(
            adapter + "b",
            tuple(name + "lora_B.weight" for name in names),
            SomeParts(rule.kind, shapes, stored),
            tuple(shapes[number] for number in stored),
            REPLICATED if split_inputs else rule.tensor_parallel,
        ),
    ]

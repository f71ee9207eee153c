"""Adapters in the decoder layers of a model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec

from megatron_llava.config.lora import LoraConfig, targeted_parts
from megatron_llava.peft.linears import LoraColumnParallelLinear, LoraRowParallelLinear


def add_adapters(
    attention: SelfAttentionSubmodules,
    mlp: MLPSubmodules,
    lora: LoraConfig | None,
    column: type[LoraColumnParallelLinear],
    row: type[LoraRowParallelLinear],
) -> None:
    """Have those linears of a layer built with adapters that the settings name.

    Args:
        column: a linear with an adapter whose outputs are split.
        row: one whose inputs are.
    """
    if lora is None or not lora.adapts:
        return

    def has_adapter(linear: str) -> bool:
        return bool(targeted_parts(linear, lora.lora_target_modules))

    def row_parallel(linear: str) -> ModuleSpec:
        return ModuleSpec(module=row, params={"lora": lora, "name": linear})

    if has_adapter("linear_qkv"):
        # Attention calls it, and builds the others from a spec.
        attention.linear_qkv = partial(column, lora=lora, name="linear_qkv")
    if has_adapter("linear_proj"):
        attention.linear_proj = row_parallel("linear_proj")
    if has_adapter("linear_fc1"):
        params = {"lora": lora, "name": "linear_fc1"}
        mlp.linear_fc1 = ModuleSpec(module=column, params=params)
    if has_adapter("linear_fc2"):
        mlp.linear_fc2 = row_parallel("linear_fc2")


def draw_adapters(layers: torch.nn.ModuleList, seed: int) -> None:
    """Start the adapters of decoder layers, the same at every parallel layout."""
    for layer in layers:
        for linear in adapted_linears(layer):
            linear.draw(seed, layer.layer_number)


def adapted_linears(
    module: torch.nn.Module,
) -> Iterator[LoraColumnParallelLinear | LoraRowParallelLinear]:
    """The linears with adapters in a module."""
    for part in module.modules():
        if isinstance(part, (LoraColumnParallelLinear, LoraRowParallelLinear)):
            yield part

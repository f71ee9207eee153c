"""Which weights a checkpoint of a run holds, and putting them into the models.

A run with adapters saves what it trains, the projector and the learned rows of images; the frozen
weights stay in the checkpoint that it started from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from megatron_llava.config.training import part_of
from megatron_llava.models.fp8_layers import Fp8Linear
from megatron_llava.models.image_rows import OPTIONAL_ROWS
from megatron_llava.models.llava import LlavaModel
from megatron_llava.parallel.checkpoint_directory import CheckpointError
from megatron_llava.peft.layers import adapted_linears
from megatron_llava.peft.targets import is_adapter

EXTRA_STATE = "_extra_state"
"""How names end of what is no tensor: scales of FP8."""


def held_weights(models: list[LlavaModel]) -> dict[str, Any]:
    """Core's sharded state dicts of what a checkpoint of the run holds, under Megatron's names."""
    return _named(models, _held)


def base_weights(models: list[LlavaModel]) -> dict[str, Any]:
    """Those of everything but adapters: what a checkpoint of a whole model holds."""
    return _named(models, lambda model: lambda name: not is_adapter(name))


def _held(model: LlavaModel) -> Callable[[str], bool]:
    """Whether a checkpoint holds an entry of a model."""
    if not any(True for _ in adapted_linears(model)):
        return lambda name: True
    held = {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        or is_adapter(name)
        or part_of(name) == "mm_mlp_adapter"
        or name in OPTIONAL_ROWS
    }
    return held.__contains__


def _named(
    models: list[LlavaModel], choose: Callable[[LlavaModel], Callable[[str], bool]]
) -> dict[str, Any]:
    names = ["model"] if len(models) == 1 else [f"model{number}" for number in range(len(models))]
    found = {}
    for name, model in zip(names, models, strict=True):
        chosen = choose(model)
        state = model.sharded_state_dict()
        found[name] = {key: entry for key, entry in state.items() if chosen(key)}
    return found


def put(
    root: str,
    models: list[LlavaModel],
    asked: Mapping[str, Collection[str]],
    loaded: Mapping[str, Any],
) -> None:
    """Give the models what was read.

    Args:
        asked: by Megatron's name of a model, what had to be read.

    Raises:
        CheckpointError: some of that is missing, or there is more.
    """
    for model, (name, keys) in zip(models, asked.items(), strict=True):
        state = {k: v for k, v in loaded[name].items() if not _of_emulation(model, k, v)}
        missing, surplus = model.load_state_dict(state, strict=False)
        missing = [key for key in missing if key in keys and key not in loaded[name]]
        if missing or surplus:
            raise CheckpointError(
                f"{root}: lacks {missing[:3]} and has {surplus[:3]} for the model"
            )


def _of_emulation(model: torch.nn.Module, name: str, value: Any) -> bool:
    """Whether an entry has scales of emulated FP8 for a module of Transformer Engine, which reads
    only its own: its scales start at one."""
    if not name.endswith(EXTRA_STATE) or not isinstance(value, dict):
        return False
    return not isinstance(model.get_submodule(name.removesuffix("." + EXTRA_STATE)), Fp8Linear)

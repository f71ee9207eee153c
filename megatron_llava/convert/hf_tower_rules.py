"""The rows of a vision tower that transformers computes: its parameters keep shape and order."""

from __future__ import annotations

import json
from typing import Any

from megatron_llava.config.towers import HF_TOWERS, TOWERS
from megatron_llava.convert.config_checks import check_heads, require
from megatron_llava.convert.rules import REPLICATED, Copy, PassThrough, Rule, Shape
from megatron_llava.convert.tensor_source import RenamedTensors, TensorSource
from megatron_llava.vision.hf_tower import hf_name, model_shapes, parts_of, tower_shapes

VISION, FLAT_VISION = "vision_tower.vision_model.", "vision_tower."
"""Where hub names have a tower, and where transformers has one of another kind."""


def hf_tower_fields(kind: str, section: dict[str, Any]) -> dict[str, Any]:
    """The fields of a mapping that a vision_config decides, but for the selected layer.

    Raises:
        ValueError: one line naming a setting that we would not compute.
    """
    parts = parts_of(kind)
    for key, value in parts.fixed.items():
        require(section, key, value, "vision_config.")
    settings = {
        key: _like(value, section.get(key, value), f"vision_config.{key}")
        for key, value in parts.defaults.items()
    }
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size"):
        if settings[key] < 1:
            raise ValueError(f"config.json: vision_config.{key} is 0; give 1 or more")
    hidden, heads = settings["hidden_size"], settings["num_attention_heads"]
    check_heads(hidden, heads, "vision_config.")
    return {
        "vision_model_type": kind,
        "vision_hf_config": json.dumps(settings, sort_keys=True),
        "vision_num_layers": settings["num_hidden_layers"],
        "vision_hidden_size": hidden,
        "vision_ffn_hidden_size": parts.ffn_hidden_size(settings),
        "vision_num_attention_heads": heads,
        "vision_image_size": settings["image_size"],
        "vision_patch_size": settings["patch_size"],
        "vision_norm_epsilon": settings[parts.epsilon],
        "vision_hidden_act": settings["hidden_act"],
    }


def _like(example: Any, given: Any, key: str) -> Any:
    """A setting in the type of an example; ValueError where it is of another kind or negative."""
    wanted = type(example)
    if wanted in (int, float):
        number = isinstance(given, (int, float)) and not isinstance(given, bool)
        if number and given >= 0 and wanted(given) == given:
            return wanted(given)
    elif isinstance(given, wanted):
        return given
    raise ValueError(f"config.json: {key} is {given!r}; give one such as {example!r}")


def hf_tower_config(mapping: dict[str, Any]) -> dict[str, Any]:
    """The vision_config of a tower, as its model of transformers reads it."""
    kind = mapping["vision_model_type"]
    settings: dict[str, Any] = json.loads(mapping["vision_hf_config"])
    return {"model_type": TOWERS[kind].hf_model_type} | parts_of(kind).fixed | settings


def hf_tower_rules(mapping: dict[str, Any]) -> list[Rule]:
    """A row for each parameter that is built."""
    kind = mapping["vision_model_type"]
    return [
        Rule(f"vision_model.{name}", (VISION + hf_name(kind, name),), Copy(), (shape,), REPLICATED)
        for name, shape in _built(mapping).items()
    ]


def hf_tower_passthrough(mapping: dict[str, Any]) -> list[PassThrough]:
    """What no feature comes from: layers behind the selected one, and what follows them."""
    kind, layer = mapping["vision_model_type"], mapping["mm_vision_select_layer"]
    reason = f"after the selected feature layer {layer}"
    shapes = model_shapes(kind, mapping["vision_hf_config"], mapping["vision_num_layers"])
    used = {hf_name(kind, name) for name in _built(mapping)}
    return [
        PassThrough(
            VISION + name, None if name.startswith(parts_of(kind).unused) else shape, reason
        )
        for name, shape in shapes.items()
        if name not in used
    ]


def built_layers(mapping: dict[str, Any]) -> int:
    """Layers of a tower up to the selected hidden state; of the states, the first is the
    embeddings."""
    built: int = mapping["vision_num_layers"] + 1 + mapping["mm_vision_select_layer"]
    return built


def _built(mapping: dict[str, Any]) -> dict[str, Shape]:
    return tower_shapes(
        mapping["vision_model_type"], mapping["vision_hf_config"], built_layers(mapping)
    )


def written_names(source: TensorSource, mapping: dict[str, Any]) -> TensorSource:
    """Hub tensors under the names that a class of transformers gives them: towers beside CLIP and
    SigLIP have no `vision_model.` in them."""
    if mapping["vision_model_type"] not in HF_TOWERS:
        return source
    names = {name.replace(VISION, FLAT_VISION): name for name in source.names()}
    return RenamedTensors(source, names)

"""The model of a Hugging Face LLaVA folder as a flat mapping.

The mapping is what `model.yaml` in the root of a Megatron checkpoint holds. Its fields carry the
names of the command-line flags; besides them it keeps what only the way back needs:
`hf_model_type`, `image_token_index`, `hf_stores_tied_output_weight`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_llava.config.towers import HF_TOWERS, TOWERS, kind_of
from megatron_llava.convert.config_checks import check_heads, check_kinds, choice, require
from megatron_llava.convert.hf_defaults import (
    ROPE_THETA_DEFAULT,
    TEXT_DEFAULTS,
    TOP_DEFAULTS,
    VISION_DEFAULTS,
)
from megatron_llava.convert.hf_images import image_fields
from megatron_llava.convert.hf_tower_rules import hf_tower_fields

# The projector of every Hugging Face class is two linears with an activation between.
PROJECTOR_OF_ACTIVATION = {"gelu": "mlp2x_gelu", "relu": "mlp2x_relu"}
VISION_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError, one line, where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected an object")
    return content


def mapping_from_hf(config: dict[str, Any], processor: dict[str, Any]) -> dict[str, Any]:
    """The mapping of a LLaVA config (as JSON) of any class and its image processor's settings.

    Raises ValueError naming the setting for everything that the Megatron model would not compute.
    Tied weights and the dtype are known only with the tensors: see `check_tensors`.
    """
    model_type = choice(config, "model_type", TOP_DEFAULTS, "")
    if "quantization_config" in config:
        raise ValueError("config.json: quantization_config is set; convert the unquantised model")
    given = {key: value for key, value in config.items() if value is not None}
    top = {**TOP_DEFAULTS[model_type], **_with_image_token(given)}
    require(top, "multimodal_projector_bias", True, "")
    projector = PROJECTOR_OF_ACTIVATION[
        choice(top, "projector_hidden_act", PROJECTOR_OF_ACTIVATION, "")
    ]
    check_kinds(top, {"text_config": {}, "vision_config": {}, "image_token_index": 1}, "")
    text_type = TOP_DEFAULTS[model_type]["text_config"]["model_type"]
    vision_type = TOP_DEFAULTS[model_type]["vision_config"]["model_type"]
    mapping = text_fields({"model_type": text_type, **top["text_config"]})
    mapping |= vision_fields({"model_type": vision_type, **top["vision_config"]}, top)
    mapping |= image_fields(top, processor, mapping["vision_image_size"])
    index = top["image_token_index"]
    if not 0 <= index < mapping["vocab_size"]:
        raise ValueError(
            f"config.json: image_token_index is {index}, but vocab_size is {mapping['vocab_size']}"
        )
    return mapping | {
        "hf_model_type": model_type,
        "mm_projector_type": projector,
        "image_token_index": index,
    }


def _with_image_token(given: dict[str, Any]) -> dict[str, Any]:
    """`image_token_id` is another name of `image_token_index`, as in transformers."""
    other = given.get("image_token_id")
    if other is None:
        return given
    index = given.get("image_token_index", other)
    if index != other:
        raise ValueError(
            f"config.json: image_token_index is {index}, but image_token_id is {other}; drop one"
        )
    return {**given, "image_token_index": index}


def _rotary_base(text: dict[str, Any], prefix: str) -> float:
    """The rotary base: in `rope_parameters` of new files, `rope_theta` of old ones."""
    parameters = text.get("rope_parameters") or {}
    for key, value in (("rope_parameters", parameters), ("rope_scaling", text.get("rope_scaling"))):
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"config.json: {prefix}{key} is {value!r}; give an object")
    for key, section in (
        ("rope_scaling", text.get("rope_scaling")),
        ("rope_parameters", parameters),
    ):
        kind = (section or {}).get("rope_type", (section or {}).get("type", "default"))
        if kind != "default":
            raise ValueError(f"config.json: {prefix}{key} is {section!r}; supported: none")
    for section in (text, parameters):
        require(section, "partial_rotary_factor", 1.0, prefix)
    old, new = text.get("rope_theta"), parameters.get("rope_theta")
    if old is not None and new is not None and old != new:
        raise ValueError(
            f"config.json: {prefix}rope_theta is {old}, but rope_parameters.rope_theta is {new}"
        )
    theta = new if new is not None else old
    if theta is None:
        return ROPE_THETA_DEFAULT
    check_kinds({"rope_theta": theta}, {"rope_theta": ROPE_THETA_DEFAULT}, prefix)
    return float(theta)


def _refuse_sliding_window(text: dict[str, Any], model_type: str, prefix: str) -> None:
    window = text.get("sliding_window")
    if model_type == "qwen2" and not text["use_sliding_window"]:
        window = None
    kinds = text.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise ValueError(
            f"config.json: {prefix}layer_types is {kinds!r:.60}; supported: full_attention"
        )
    if window is None:
        return
    check_kinds({"sliding_window": window}, {"sliding_window": 1}, prefix)
    if window < text["max_position_embeddings"]:
        raise ValueError(
            f"config.json: {prefix}sliding_window is {window}, shorter than "
            f"max_position_embeddings {text['max_position_embeddings']}; supported: null"
        )


def text_fields(section: dict[str, Any], prefix: str = "text_config.") -> dict[str, Any]:
    """The language model's fields of a mapping.

    Args:
        section: its config, `model_type` included.
        prefix: where its keys are, for messages.
    """
    model_type = choice(section, "model_type", TEXT_DEFAULTS, prefix)
    text = {**TEXT_DEFAULTS[model_type], **section}
    check_kinds(text, TEXT_DEFAULTS[model_type], prefix)
    require(text, "hidden_act", "silu", prefix)
    if model_type != "qwen2":  # Qwen2 has a bias on query, key and value whatever the file says
        require(text, "attention_bias", False, prefix)
    require(text, "mlp_bias", False, prefix)
    _refuse_sliding_window(text, model_type, prefix)
    heads, hidden = text["num_attention_heads"], text["hidden_size"]
    groups = text["num_key_value_heads"] or heads
    if heads % groups:
        raise ValueError(
            f"config.json: {prefix}num_attention_heads is {heads}, "
            f"no multiple of num_key_value_heads {groups}"
        )
    if not text.get("head_dim"):
        check_heads(hidden, heads, prefix)
    return {
        "language_model_type": model_type,
        "num_layers": text["num_hidden_layers"],
        "hidden_size": hidden,
        "ffn_hidden_size": text["intermediate_size"],
        "num_attention_heads": heads,
        "num_query_groups": groups,
        "kv_channels": text.get("head_dim") or hidden // heads,
        "max_position_embeddings": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
        "norm_epsilon": text["rms_norm_eps"],
        "rotary_base": _rotary_base(text, prefix),
        "add_qkv_bias": model_type == "qwen2",
    }


def _select_layer(top: dict[str, Any], stored: int, key: str) -> int:
    """The hidden state of a tower of `stored` layers that is read, counted from the end."""
    layer = top["vision_feature_layer"]
    if not isinstance(layer, int) or isinstance(layer, bool) or layer >= 0:
        raise ValueError(f"config.json: {key} is {layer!r}; supported: one negative number")
    if stored + 1 + layer < 1:
        raise ValueError(
            f"config.json: {key} is {layer}, but the vision tower has only {stored} layers"
        )
    return layer


def vision_fields(
    section: dict[str, Any], top: dict[str, Any], layer_key: str = "vision_feature_layer"
) -> dict[str, Any]:
    """The vision tower's fields of a mapping.

    Args:
        section: its config, `model_type` included.
        top: `vision_feature_layer` and `vision_feature_select_strategy` of the whole model.
        layer_key: what config.json calls the former.
    """
    prefix = "vision_config."
    known = [kind.hf_model_type for kind in TOWERS.values()]
    model_type = choice(section, "model_type", known, prefix)
    kind = kind_of(model_type)
    assert kind is not None
    # "default" drops the first position: the class token, which not every kind has.
    strategy = "default" if TOWERS[kind].front_rows else "full"
    if top["vision_feature_select_strategy"] != strategy:
        raise ValueError(
            f"config.json: vision_feature_select_strategy is "
            f"{top['vision_feature_select_strategy']!r}; {model_type} supports {strategy!r}"
        )
    if kind in HF_TOWERS:
        fields = hf_tower_fields(kind, section)
        selected = _select_layer(top, fields["vision_num_layers"], layer_key)
        return fields | {"mm_vision_select_layer": selected}
    vision = {**VISION_DEFAULTS[model_type], **section}
    check_kinds(vision, VISION_DEFAULTS[model_type], prefix)
    require(vision, "num_channels", 3, prefix)
    choice(vision, "hidden_act", VISION_ACTIVATIONS, prefix)
    check_heads(vision["hidden_size"], vision["num_attention_heads"], prefix)
    return {
        "vision_model_type": kind,
        "vision_num_layers": vision["num_hidden_layers"],
        "vision_hidden_size": vision["hidden_size"],
        "vision_ffn_hidden_size": vision["intermediate_size"],
        "vision_num_attention_heads": vision["num_attention_heads"],
        "vision_image_size": vision["image_size"],
        "vision_patch_size": vision["patch_size"],
        "vision_norm_epsilon": vision["layer_norm_eps"],
        "vision_hidden_act": vision["hidden_act"],
        "mm_vision_select_layer": _select_layer(top, vision["num_hidden_layers"], layer_key),
    }

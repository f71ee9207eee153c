"""The configuration of the original LLaVA code (`llava_llama`, `llava_mistral`, `llava_qwen`).

Its config.json has the text model's keys beside LLaVA's own (`mm_*`, `image_*`), and names the
vision tower without describing it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_llava.config.image import ImageSettings
from megatron_llava.config.projector import parse_projector_type
from megatron_llava.config.towers import HF_TOWERS, TOWERS, kind_of
from megatron_llava.config.video import video_settings
from megatron_llava.convert.combined_reader import HFSource
from megatron_llava.convert.config_checks import check_kinds, number_pairs, three_numbers
from megatron_llava.convert.families import VISION
from megatron_llava.convert.hf_config import text_fields, vision_fields
from megatron_llava.convert.hf_defaults import CLIP_L_336, SO400M_384, VISION_DEFAULTS

# The text model by the class that saved a checkpoint, or by model_type where none is named.
TEXT_OF_CLASS = {
    "LlavaLlamaForCausalLM": "llama",
    "LlavaMistralForCausalLM": "mistral",
    "LlavaQwenForCausalLM": "qwen2",
}
_TEXT_OF_TYPE = {
    "llava_llama": "llama",
    "llava": "llama",
    "llama": "llama",
    "llava_mistral": "mistral",
    "mistral": "mistral",
    "llava_qwen": "qwen2",
    "qwen2": "qwen2",
}
MODEL_TYPE = {"llama": "llava_llama", "mistral": "llava_mistral", "qwen2": "llava_qwen"}
# And what the original code does where the file does not say. Not mm_spatial_pool_stride: that it
# stores, and pools by 2.
VIDEO_KEYS = {"mm_spatial_pool_mode": "bilinear", "mm_newline_position": "one_token"}
KNOWN_TOWERS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14-336": CLIP_L_336,
    "openai/clip-vit-large-patch14": CLIP_L_336 | {"image_size": 224},
    "google/siglip-so400m-patch14-384": SO400M_384 | {"num_hidden_layers": 27},
}


def text_type(config: dict[str, Any]) -> str:
    """llama, mistral or qwen2; ValueError for another model."""
    classes = config.get("architectures")
    for name in classes if isinstance(classes, list) else ():
        if isinstance(name, str) and name in TEXT_OF_CLASS:
            return TEXT_OF_CLASS[name]
    model_type = str(config.get("model_type"))
    if model_type not in _TEXT_OF_TYPE:
        raise ValueError(
            f"config.json: model_type is {model_type!r} and architectures "
            f"{config.get('architectures')}; supported: {', '.join(TEXT_OF_CLASS)}"
        )
    return _TEXT_OF_TYPE[model_type]


def tower_config(config: dict[str, Any]) -> dict[str, Any]:
    """The vision config of the tower that config.json names, if it is a known one."""
    name = str(config.get("mm_vision_tower"))
    if name not in KNOWN_TOWERS:
        raise ValueError(
            f"config.json: mm_vision_tower is {name!r}, of which nothing more is known: give "
            f"--vision-tower FOLDER (known by name: {', '.join(KNOWN_TOWERS)})"
        )
    return KNOWN_TOWERS[name]


def mapping_from_llava(
    config: dict[str, Any],
    tower: dict[str, Any],
    reader: HFSource,
    processor: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The mapping of an original LLaVA folder.

    Args:
        config: its config.json.
        tower: the vision config of its tower.
        reader: its tensors; they decide how many layers of the tower there are, and whether there
            is a newline.
        processor: the tower's image processor, for mean and deviation.

    Raises ValueError naming the setting that we would not compute.
    """
    if config.get("mm_use_im_start_end"):
        raise ValueError("config.json: mm_use_im_start_end is true; supported: false")
    mapping = text_fields({**config, "model_type": text_type(config)}, prefix="")
    mapping |= _tower_fields(config, tower, reader)
    mapping |= _image_fields(config, mapping, processor or {}, "image_newline" in reader)
    projector = config.get("mm_projector_type", "linear")
    check_kinds({"mm_projector_type": projector}, {"mm_projector_type": "linear"}, "")
    try:
        parse_projector_type(projector)
    except ValueError as error:
        raise ValueError(
            f"config.json: mm_projector_type is {projector!r}; {str(error).split(': ', 1)[1]}"
        ) from None
    return mapping | {
        "hf_model_type": MODEL_TYPE[text_type(config)],
        "mm_projector_type": projector,
        "image_token_index": None,
    }


def _tower_fields(
    config: dict[str, Any], tower: dict[str, Any], reader: HFSource
) -> dict[str, Any]:
    """CLIP reads `mm_vision_select_layer`; SigLIP always the state before its last layer.

    The original code drops that layer of SigLIP, so that a fine-tuned tower lacks it.
    """
    if kind_of(tower["model_type"]) in HF_TOWERS:
        raise ValueError(
            f"--vision-tower: the original code has no tower of model_type {tower['model_type']}"
        )
    prefix = VISION + "encoder.layers."
    stored = {n.removeprefix(prefix).split(".")[0] for n in reader.names() if n.startswith(prefix)}
    tower = {**VISION_DEFAULTS[tower["model_type"]], **tower}
    check_kinds(tower, {"num_hidden_layers": 1}, "vision_config.")
    layers = tower["num_hidden_layers"]
    select = config.get("mm_vision_select_layer", -2)
    if tower["model_type"] == "siglip_vision_model":
        has_last = len(stored) != layers - 1
        select = -2 if has_last else -1
        tower = {**tower, "num_hidden_layers": layers if has_last else layers - 1}
        strategy = "full"
    else:
        feature = config.get("mm_vision_select_feature", "patch")
        if feature != "patch":
            raise ValueError(
                f"config.json: mm_vision_select_feature is {feature!r}; supported: 'patch'"
            )
        strategy = "default"
    top = {"vision_feature_layer": select, "vision_feature_select_strategy": strategy}
    fields = vision_fields(tower, top, layer_key="mm_vision_select_layer")
    has_head = any(name.startswith(VISION + "head.") for name in reader.names())
    return fields | {"vision_use_head": has_head}


def _image_fields(
    config: dict[str, Any],
    mapping: dict[str, Any],
    processor: dict[str, Any],
    has_newline: bool,
) -> dict[str, Any]:
    kind, side = TOWERS[mapping["vision_model_type"]], mapping["vision_image_size"]
    mean, std = kind.image_mean_std
    ratio = config.get("image_aspect_ratio") or "square"
    if isinstance(ratio, list):
        ratio = ratio[0]
    if not isinstance(ratio, str):
        raise ValueError(f"config.json: image_aspect_ratio is {ratio!r:.60}; give a name")
    fields: dict[str, Any] = {
        "image_aspect_ratio": ratio,
        "mm_patch_merge_type": config.get("mm_patch_merge_type") or "flat",
        "unpad_round": "llava",
        "pinpoint_order": "wh",
        "multi_image_views": "one_padded",
        "image_newline": has_newline,
        "image_resize_mode": kind.image_resize_mode,
        "image_mean": _numbers(processor, "image_mean", mean),
        "image_std": _numbers(processor, "image_std", std),
    }
    fields |= {key: config[key] for key in VIDEO_KEYS if config.get(key) is not None}
    grids = config.get("image_grid_pinpoints")
    if grids and "anyres" in ratio:
        is_text = isinstance(grids, str)
        fields["image_grid_pinpoints"] = (
            grids if is_text else number_pairs(grids, "config.json: image_grid_pinpoints")
        )
    _check_images(fields, side, mapping["vision_patch_size"])
    return fields


def _numbers(processor: dict[str, Any], key: str, default: Sequence[float]) -> list[float]:
    return three_numbers(processor.get(key) or list(default), f"--vision-tower: {key}")


def _check_images(fields: dict[str, Any], side: int, patch: int) -> None:
    from megatron_llava.vision.anyres import parse_grid_pinpoints

    grids = fields.get("image_grid_pinpoints")
    try:
        settings = ImageSettings(
            tile_size=side,
            patch_size=patch,
            image_aspect_ratio=fields["image_aspect_ratio"],
            grid_pinpoints=parse_grid_pinpoints(grids, side, "wh") if grids else (),
            mm_patch_merge_type=fields["mm_patch_merge_type"],
            unpad_round="llava",
            resize_mode=fields["image_resize_mode"],
            image_mean=tuple(fields["image_mean"]),
            image_std=tuple(fields["image_std"]),
            image_newline=fields["image_newline"],
            **{key: fields[key] for key in VIDEO_KEYS if key in fields},
        )
        video_settings(settings)
    except ValueError as error:
        raise ValueError(f"config.json: {error}") from None


def llava_config(mapping: dict[str, Any], base: dict[str, Any], dtype_name: str) -> dict[str, Any]:
    """config.json of an original folder for a model.

    Args:
        base: the config.json that the model came from, original or of transformers; its other keys
            are kept.
    """
    kind = mapping["language_model_type"]
    text = base.get("text_config")
    config = dict(base if text is None else text)
    for key in ("dtype", "rope_parameters"):
        config.pop(key, None)
    classes = {text: name for name, text in TEXT_OF_CLASS.items()}
    siglip = mapping["vision_model_type"] == "siglip"
    config |= {
        "architectures": [classes[kind]],
        "model_type": base.get("model_type") if text is None else MODEL_TYPE[kind],
        "torch_dtype": dtype_name,
        "vocab_size": mapping["vocab_size"],
        "hidden_size": mapping["hidden_size"],
        "intermediate_size": mapping["ffn_hidden_size"],
        "num_hidden_layers": mapping["num_layers"],
        "num_attention_heads": mapping["num_attention_heads"],
        "num_key_value_heads": mapping["num_query_groups"],
        "max_position_embeddings": mapping["max_position_embeddings"],
        "rms_norm_eps": mapping["norm_epsilon"],
        "rope_theta": mapping["rotary_base"],
        "tie_word_embeddings": not mapping["untie_embeddings_and_output_weights"],
        "mm_hidden_size": mapping["vision_hidden_size"],
        "mm_projector_type": mapping["mm_projector_type"],
        "mm_vision_select_layer": -2 if siglip else mapping["mm_vision_select_layer"],
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "mm_patch_merge_type": mapping["mm_patch_merge_type"],
        "image_aspect_ratio": mapping["image_aspect_ratio"],
        "use_mm_proj": True,
    }
    for key, value in VIDEO_KEYS.items():
        found = mapping.get(key, value)
        if key in config or found != value:
            config[key] = found
    if text is None and "mm_vision_select_layer" in base:
        config["mm_vision_select_layer"] = base["mm_vision_select_layer"]
    if text is not None:
        config["mm_vision_tower"] = _name_of_tower(mapping)
    grids = mapping.get("image_grid_pinpoints")
    if grids:
        config["image_grid_pinpoints"] = width_first(mapping)
    return config


def _name_of_tower(mapping: dict[str, Any]) -> str:
    """The published tower of the model's sizes; else a folder that the user puts there."""
    for name, tower in KNOWN_TOWERS.items():
        same = (
            tower["hidden_size"] == mapping["vision_hidden_size"]
            and tower["image_size"] == mapping["vision_image_size"]
            and tower["model_type"].startswith(mapping["vision_model_type"])
        )
        if same:
            return name
    return "vision_tower"


def width_first(mapping: dict[str, Any]) -> Any:
    """The grid list as the original code reads it; a list of the same order is given back as is."""
    from megatron_llava.vision.anyres import parse_grid_pinpoints

    grids = mapping["image_grid_pinpoints"]
    # Of texts the original code reads a range and a list.
    if mapping["pinpoint_order"] == "wh" and not (isinstance(grids, str) and grids[0] not in "(["):
        return grids
    side = mapping["vision_image_size"]
    return [list(pair) for pair in parse_grid_pinpoints(grids, side, mapping["pinpoint_order"])]

"""config.json and image processor settings of a transformers class, for a mapping that has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_llava.config.towers import HF_TOWERS, TOWERS
from megatron_llava.convert.hf_config import PROJECTOR_OF_ACTIVATION
from megatron_llava.convert.hf_images import ANYRES_MAX
from megatron_llava.convert.hf_tower_rules import hf_tower_config
from megatron_llava.vision.anyres import parse_grid_pinpoints

_ARCHITECTURES = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
}
_PROCESSORS = {
    "llava": "LlavaProcessor",
    "llava_next": "LlavaNextProcessor",
    "llava_onevision": "LlavaOnevisionProcessor",
}


def class_of(mapping: dict[str, Any]) -> str:
    """The transformers class (its model_type) that computes a model's images.

    Raises:
        ValueError: none does.
    """
    ratio, merge = mapping["image_aspect_ratio"], mapping["mm_patch_merge_type"]
    unpads = merge == "spatial_unpad" and mapping["image_newline"]
    if ratio in ("square", "pad") and merge == "flat" and not mapping["image_newline"]:
        return "llava"
    if ratio == "anyres" and unpads:
        return "llava_next"
    if ANYRES_MAX.fullmatch(ratio) and unpads:
        return "llava_onevision"
    newline = "with" if mapping["image_newline"] else "without"
    raise ValueError(
        f"image_aspect_ratio {ratio} with mm_patch_merge_type {merge} {newline} image_newline is "
        "computed by no class of transformers: they have square or pad with flat and no newline, "
        "and anyres or anyres_max_N with spatial_unpad"
    )


def hf_config(mapping: dict[str, Any], model_type: str, dtype_name: str) -> dict[str, Any]:
    """config.json of a class of transformers.

    Raises:
        ValueError: its projector has another shape.
    """
    activations = {name: act for act, name in PROJECTOR_OF_ACTIVATION.items()}
    projector = mapping["mm_projector_type"]
    if projector not in activations:
        raise ValueError(
            f"mm_projector_type {projector}: the classes of transformers have "
            f"{' or '.join(activations)} only"
        )
    side, front_rows = mapping["vision_image_size"], _front_rows(mapping)
    tied = not mapping["untie_embeddings_and_output_weights"]
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        "dtype": dtype_name,
        "image_token_index": mapping["image_token_index"],
        "image_seq_length": (side // mapping["vision_patch_size"]) ** 2,
        "projector_hidden_act": activations[projector],
        "multimodal_projector_bias": True,
        "vision_feature_layer": mapping["mm_vision_select_layer"],
        "vision_feature_select_strategy": "default" if front_rows else "full",
        "tie_word_embeddings": tied,
        "text_config": {
            "model_type": mapping["language_model_type"],
            "num_hidden_layers": mapping["num_layers"],
            "hidden_size": mapping["hidden_size"],
            "intermediate_size": mapping["ffn_hidden_size"],
            "num_attention_heads": mapping["num_attention_heads"],
            "num_key_value_heads": mapping["num_query_groups"],
            "head_dim": mapping["kv_channels"],
            "max_position_embeddings": mapping["max_position_embeddings"],
            "vocab_size": mapping["vocab_size"],
            "rms_norm_eps": mapping["norm_epsilon"],
            "rope_parameters": {"rope_type": "default", "rope_theta": mapping["rotary_base"]},
            "rope_theta": mapping["rotary_base"],
            "tie_word_embeddings": tied,
            "sliding_window": None,
        },
        "vision_config": _vision_config(mapping),
    }
    if model_type != "llava":
        config["image_grid_pinpoints"] = _height_first(mapping)
    if model_type == "llava_onevision":
        config["vision_aspect_ratio"] = mapping["image_aspect_ratio"]
    if mapping.get("video_token_index") is not None:
        config["video_token_index"] = mapping["video_token_index"]
    return config


def _vision_config(mapping: dict[str, Any]) -> dict[str, Any]:
    kind = mapping["vision_model_type"]
    if kind in HF_TOWERS:
        return hf_tower_config(mapping)
    config = {
        "model_type": TOWERS[kind].hf_model_type,
        "num_hidden_layers": mapping["vision_num_layers"],
        "hidden_size": mapping["vision_hidden_size"],
        "intermediate_size": mapping["vision_ffn_hidden_size"],
        "num_attention_heads": mapping["vision_num_attention_heads"],
        "image_size": mapping["vision_image_size"],
        "patch_size": mapping["vision_patch_size"],
        "layer_norm_eps": mapping["vision_norm_epsilon"],
        "hidden_act": mapping["vision_hidden_act"],
    }
    if kind == "siglip":
        config["vision_use_head"] = bool(mapping.get("vision_use_head"))
    return config


def _front_rows(mapping: dict[str, Any]) -> int:
    return TOWERS[mapping["vision_model_type"]].front_rows


def image_processor(mapping: dict[str, Any], model_type: str) -> dict[str, Any]:
    """Settings of the image processor of a class."""
    side = mapping["vision_image_size"]
    square = {"height": side, "width": side}
    crops = mapping["image_resize_mode"] == "shortest_edge_crop"
    settings: dict[str, Any] = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
        "size": {"shortest_edge": side} if crops else square,
        "image_mean": list(mapping["image_mean"]),
        "image_std": list(mapping["image_std"]),
        "do_center_crop": crops,
        "crop_size": square,
        "processor_class": _PROCESSORS[model_type],
    }
    if model_type == "llava":
        pads = mapping["image_aspect_ratio"] == "pad"
        name = "CLIPImageProcessor" if crops else "SiglipImageProcessor"
        settings["image_processor_type"] = "LlavaImageProcessor" if pads else name
        return settings | ({"do_pad": True} if pads else {})
    return settings | {
        "image_processor_type": _PROCESSORS[model_type].replace("Processor", "ImageProcessor"),
        "image_grid_pinpoints": _height_first(mapping),
        "do_pad": True,
    }


def write_hf_files(folder: Path, mapping: dict[str, Any], dtype_name: str) -> None:
    """Write config.json, preprocessor_config.json and processor_config.json of the class."""
    model_type = class_of(mapping)
    config = hf_config(mapping, model_type, dtype_name)
    processor: dict[str, Any] = {
        "processor_class": _PROCESSORS[model_type],
        "image_token": "<image>",
        "vision_feature_select_strategy": config["vision_feature_select_strategy"],
    }
    if model_type == "llava_onevision":
        processor |= {
            "num_image_tokens": config["image_seq_length"] + _front_rows(mapping),
            "vision_aspect_ratio": config["vision_aspect_ratio"],
            "video_token": "<video>",
        }
    else:
        processor |= {
            "patch_size": mapping["vision_patch_size"],
            "num_additional_image_tokens": _front_rows(mapping),
        }
    files = {
        "config.json": config,
        "preprocessor_config.json": image_processor(mapping, model_type),
        "processor_config.json": processor,
    }
    for name, content in files.items():
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def _height_first(mapping: dict[str, Any]) -> list[list[int]]:
    """The grid list as transformers reads it."""
    canonical = parse_grid_pinpoints(
        mapping["image_grid_pinpoints"], mapping["vision_image_size"], mapping["pinpoint_order"]
    )
    return [[height, width] for width, height in canonical]

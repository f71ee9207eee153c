"""config.json and the other side files of an exported Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_llava.convert.hf_config import mapping_from_hf, read_json
from megatron_llava.convert.hf_files import class_of, write_hf_files
from megatron_llava.convert.hf_folder import (
    CONFIG_FILE,
    DTYPE_NAMES,
    RATIO_KEY,
    change_processors,
    copy_side_files,
    read_image_processor,
    replace_present,
    write_config,
)
from megatron_llava.convert.hf_images import ANYRES_MAX
from megatron_llava.convert.image_token import add_tokens, rows_for
from megatron_llava.text.constants import IMAGE_PLACEHOLDER
from megatron_llava.vision.anyres import parse_grid_pinpoints

# Settings of the image path that a class of transformers computes in one way only.
FIXED_IN_LLAVA = {
    "grid_choice": "resolution",
    "image_pool_stride": 1,
    "image_separator": False,
    "image_start_end": False,
    "tile_position_embedding": False,
    "cross_image_attention": False,
    "temporal_encoder_layers": 0,
    "pad_aspect_ratio": 1.0,
    "pad_tolerance": 0.0,
}
_ANYRES = FIXED_IN_LLAVA | {
    "mm_patch_merge_type": "spatial_unpad",
    "unpad_round": "hf",
    "image_newline": True,
}
# What transformers makes of a video, and what a model.yaml that does not say means.
VIDEO_OF_HF = {
    "mm_spatial_pool_mode": "bilinear",
    "mm_spatial_pool_stride": 2,
    "mm_newline_position": "one_token",
}
FIXED_IN_HF = {
    "llava": FIXED_IN_LLAVA | {"mm_patch_merge_type": "flat", "image_newline": False},
    "llava_next": _ANYRES | {"image_aspect_ratio": "anyres"},
    "llava_onevision": _ANYRES | VIDEO_OF_HF,
}
STATED_IN_HF = (
    "language_model_type",
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "max_position_embeddings",
    "vocab_size",
    "norm_epsilon",
    "rotary_base",
    "add_qkv_bias",
    "vision_model_type",
    "vision_num_layers",
    "vision_hidden_size",
    "vision_ffn_hidden_size",
    "vision_num_attention_heads",
    "vision_image_size",
    "vision_patch_size",
    "vision_norm_epsilon",
    "vision_hidden_act",
    "vision_hf_config",
    "mm_vision_select_layer",
    "mm_projector_type",
    "image_mean",
    "image_std",
    "image_resize_mode",
)


def hf_pinpoints(mapping: dict[str, Any]) -> list[list[int]]:
    """The grid list as transformers reads it: (height, width) pairs in pixels."""
    canonical = parse_grid_pinpoints(
        mapping["image_grid_pinpoints"], mapping["vision_image_size"], mapping["pinpoint_order"]
    )
    return [[height, width] for width, height in canonical]


def write_hf_side_files(
    source: Path, target: Path, mapping: dict[str, Any], dtype: torch.dtype
) -> None:
    """Copy `source` (the `hf/` of a checkpoint's root), brought up to date with the mapping.

    The grid list follows the checkpoint. ValueError where the checkpoint contradicts config.json or
    was trained with image settings that its class cannot compute.
    """
    config = read_json(source / CONFIG_FILE)
    stated = mapping_from_hf(config, read_image_processor(source))
    for field in STATED_IN_HF:
        found = mapping.get(field)
        if (list(found) if isinstance(found, tuple) else found) != stated.get(field):
            raise ValueError(
                f"{source}: the Hugging Face files say {field} {stated.get(field)}, but model.yaml "
                f"says {found}"
            )
    check_fixed(mapping, config["model_type"])
    changes = _image_changes(mapping, stated)
    copy_side_files(source, target)
    if changes:
        config |= changes
        change_processors(target, lambda section: replace_present(section, changes))
    write_config(target, config, dtype)


def write_new_hf_files(
    source: Path, target: Path, mapping: dict[str, Any], dtype: torch.dtype
) -> int:
    """Files of a model that no transformers class has held: with an `<image>` token, which its
    tokenizer and its vocabulary are given.

    Returns:
        Rows that the embedding has to have.
    """
    # The original code rounds the unpadded size otherwise: one image size in 30,000 differs.
    check_fixed(mapping | {"unpad_round": "hf"}, class_of(mapping))
    copy_side_files(source, target)
    (target / CONFIG_FILE).unlink()  # transformers does not know its class
    index = add_tokens(target)[IMAGE_PLACEHOLDER]
    rows = rows_for(mapping["vocab_size"], index)
    grown = mapping | {"vocab_size": rows, "image_token_index": index}
    write_hf_files(target, grown, DTYPE_NAMES[dtype])
    return rows


def check_fixed(mapping: dict[str, Any], model_type: str) -> None:
    """ValueError where a class of transformers cannot compute an image setting."""
    for field, value in FIXED_IN_HF[model_type].items():
        if mapping.get(field, VIDEO_OF_HF.get(field)) != value:
            raise ValueError(
                f"model.yaml: {field} is {mapping.get(field)}, which {model_type} of transformers "
                f"cannot compute; it has {value} only"
            )


def _image_changes(mapping: dict[str, Any], stated: dict[str, Any]) -> dict[str, Any]:
    """Keys of config.json that training changed; ValueError for what the class cannot state."""
    changes: dict[str, Any] = {}
    if "image_grid_pinpoints" in stated:
        pinpoints = hf_pinpoints(mapping)
        if pinpoints != stated["image_grid_pinpoints"]:
            changes["image_grid_pinpoints"] = pinpoints
    ratio = mapping["image_aspect_ratio"]
    if ratio == stated["image_aspect_ratio"]:
        return changes
    if stated["hf_model_type"] != "llava_onevision" or not ANYRES_MAX.fullmatch(ratio):
        raise ValueError(
            f"model.yaml: image_aspect_ratio is {ratio}, and the Hugging Face files say "
            f"{stated['image_aspect_ratio']}, which {stated['hf_model_type']} cannot change to that"
        )
    return changes | {RATIO_KEY: ratio}

"""Tiny random checkpoints of every class, text family and tower, saved by transformers itself.

Sizes keep the real models' proportions: query heads per key-value head, the ratio of the MLP's
width, biases, tied weights, rotary base and epsilon; towers keep their patch, norm and activation.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_checkpoints import (
    IMAGE_TOKEN_ID,
    MEAN_STD,
    PATCH,
    VOCAB_SIZE,
    randomise,
    tiny_tokenizer,
)

MODEL_TYPES = ("llava_next", "llava_onevision", "llava")

# name -> (model type, query heads, key-value heads, MLP width over hidden, rope, epsilon, tied)
TEXT_FAMILIES: dict[str, tuple] = {
    "vicuna": ("llama", 8, 8, 2.6875, 1e4, 1e-5, False),
    "llama3": ("llama", 16, 4, 3.5, 5e5, 1e-5, False),
    "mistral": ("mistral", 16, 4, 3.5, 1e6, 1e-5, False),
    "yi": ("llama", 28, 4, 2.857142857142857, 5e6, 1e-5, False),
    "qwen1.5": ("qwen2", 8, 8, 2.75, 1e6, 1e-6, True),
    "qwen2": ("qwen2", 28, 4, 5.285714285714286, 1e6, 1e-6, False),
    "qwen2-tied": ("qwen2", 14, 2, 5.428571428571429, 1e6, 1e-6, True),
}
# name -> (kind, heads, width of a head, MLP width over hidden, tile)
TOWERS: dict[str, tuple] = {
    "clip-224": ("clip", 4, 8, 4.0, 28),
    "clip-336": ("clip", 4, 8, 4.0, 56),
    "siglip": ("siglip", 4, 9, 3.7777777777777777, 44),  # 44 // 14 = 3, as 384 // 14 leaves a rest
}
# Those that transformers computes; their other settings.
HF_TOWERS: dict[str, tuple] = {
    "dinov2": ("dinov2", 4, 8, 4.0, 56),
    "dinov2-rest": ("dinov2", 4, 8, 3.0, 44),
    "aimv2": ("aimv2", 4, 8, 2.75, 56),
    "aimv2-native": ("aimv2", 4, 8, 2.75, 44),
}
_HF_SETTINGS = {
    "dinov2": {"layerscale_value": 0.7},
    "dinov2-rest": {"qkv_bias": False},
    "aimv2": {"qkv_bias": True, "mlp_bias": True},
    "aimv2-native": {"is_native": True, "use_head": False},
}
HEAD_WIDTH = 8
TEXT_LAYERS, VISION_LAYERS = 2, 3


def text_config(family: str, layers: int = TEXT_LAYERS, vocab_size: int = VOCAB_SIZE):
    """A transformers config of a text family."""
    from transformers import LlamaConfig, MistralConfig, Qwen2Config

    kind, heads, groups, ratio, theta, epsilon, tied = TEXT_FAMILIES[family]
    config_class = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}[kind]
    hidden = heads * HEAD_WIDTH
    extra = {"sliding_window": None} if kind == "mistral" else {}
    return config_class(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=round(hidden * ratio),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=2048,
        rms_norm_eps=epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        **extra,
    )


def vision_config(tower: str, layers: int = VISION_LAYERS):
    """A transformers config of a vision tower."""
    from transformers import Aimv2VisionConfig, CLIPVisionConfig, Dinov2Config, SiglipVisionConfig

    kind, heads, width, ratio, tile = (TOWERS | HF_TOWERS)[tower]
    common = {
        "hidden_size": heads * width,
        "intermediate_size": round(heads * width * ratio),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "patch_size": PATCH,
        "image_size": tile,
    }
    if kind == "dinov2":
        del common["intermediate_size"]
        return Dinov2Config(mlp_ratio=round(ratio), **common, **_HF_SETTINGS[tower])
    if kind == "aimv2":
        return Aimv2VisionConfig(**common, **_HF_SETTINGS[tower])
    if kind == "clip":
        return CLIPVisionConfig(projection_dim=32, **common)
    return SiglipVisionConfig(vision_use_head=False, **common)


def image_processor(model_type: str, tower: str, pinpoints: list[list[int]]):
    """The Pillow image processor of a class, for a tower."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    kind, _, _, _, tile = (TOWERS | HF_TOWERS)[tower]
    mean, std = MEAN_STD.get(kind, MEAN_STD["clip"])
    clip = kind != "siglip"
    common = {"image_mean": mean, "image_std": std, "resample": 3}
    square = {"height": tile, "width": tile}
    if model_type == "llava":
        if clip:
            size = {"shortest_edge": tile}
            return CLIPImageProcessorPil(size=size, crop_size=square, **common)
        return SiglipImageProcessorPil(size=square, **common)
    common["image_grid_pinpoints"] = pinpoints
    if model_type == "llava_onevision":
        return LlavaOnevisionImageProcessorPil(size=square, **common)
    return LlavaNextImageProcessorPil(
        size={"shortest_edge": tile} if clip else square,
        crop_size=square,
        do_center_crop=clip,
        **common,
    )


def tiny_llava(
    path: str | Path,
    model_type: str = "llava_next",
    text: str = "vicuna",
    tower: str = "clip-336",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    layers: int = TEXT_LAYERS,
    projector_hidden_act: str = "gelu",
) -> Path:
    """Write a folder of one of MODEL_TYPES (weights, config, tokenizer, processor)."""
    import transformers

    path = Path(path)
    kind, _, _, _, tile = (TOWERS | HF_TOWERS)[tower]
    has_class_token = kind in ("clip", "dinov2")
    grids = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
    pinpoints = [[rows * tile, columns * tile] for rows, columns in grids]
    config_class, model_class = {
        "llava": (transformers.LlavaConfig, transformers.LlavaForConditionalGeneration),
        "llava_next": (
            transformers.LlavaNextConfig,
            transformers.LlavaNextForConditionalGeneration,
        ),
        "llava_onevision": (
            transformers.LlavaOnevisionConfig,
            transformers.LlavaOnevisionForConditionalGeneration,
        ),
    }[model_type]
    own = {} if model_type == "llava" else {"image_grid_pinpoints": pinpoints}
    if model_type == "llava_onevision":
        own |= {"vision_aspect_ratio": "anyres_max_2", "video_token_index": 5}
    config = config_class(
        text_config=text_config(text, layers),
        vision_config=vision_config(tower),
        image_token_index=IMAGE_TOKEN_ID,
        image_seq_length=(tile // PATCH) ** 2,
        vision_feature_layer=-1 if kind == "siglip" else -2,
        vision_feature_select_strategy="default" if has_class_token else "full",
        projector_hidden_act=projector_hidden_act,
        tie_word_embeddings=TEXT_FAMILIES[text][-1],
        **own,
    )
    model = model_class(config)
    randomise(model, seed)
    model.to(dtype).save_pretrained(path)
    image_processor(model_type, tower, pinpoints).save_pretrained(path)
    tiny_tokenizer(TEXT_FAMILIES[text][0]).save_pretrained(path)
    return path

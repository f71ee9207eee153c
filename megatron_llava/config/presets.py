"""``--model NAME``: the sizes of published models, as starting values of the model's flags.

A name is a recipe and a language model, ``llava-next-vicuna-7b``, and where the tower is not the
recipe's usual one ``+`` and a tower, ``llava-next-qwen1.5-0.5b+so400m-384``. The tables hold the
config.json of each model's repository on the Hugging Face Hub, which is named beside it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


def _language(
    layers: int,
    hidden: int,
    ffn: int,
    heads: int,
    groups: int,
    vocabulary: int,
    positions: int,
    rotary_base: float,
    **more: Any,
) -> dict[str, Any]:
    """A Llama or Mistral, which has no biases, RMS norms of 1e-5 and an output layer of its own."""
    return {
        "num_layers": layers,
        "hidden_size": hidden,
        "ffn_hidden_size": ffn,
        "num_attention_heads": heads,
        "num_query_groups": groups,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "rotary_base": rotary_base,
        "norm_epsilon": 1e-5,
        "add_qkv_bias": False,
        "untie_embeddings_and_output_weights": True,
        **more,
    }


_QWEN = {"add_qkv_bias": True, "norm_epsilon": 1e-6}
_QWEN_TIED = {**_QWEN, "untie_embeddings_and_output_weights": False}

LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    # lmsys/vicuna-7b-v1.5, lmsys/vicuna-13b-v1.5
    "vicuna-7b": _language(32, 4096, 11008, 32, 32, 32000, 4096, 1e4),
    "vicuna-13b": _language(40, 5120, 13824, 40, 40, 32000, 4096, 1e4),
    # mistralai/Mistral-7B-Instruct-v0.2
    "mistral-7b": _language(32, 4096, 14336, 32, 8, 32000, 32768, 1e6),
    # NousResearch/Nous-Hermes-2-Yi-34B
    "yi-34b": _language(60, 7168, 20480, 56, 8, 64000, 4096, 5e6),
    # meta-llama/Meta-Llama-3-8B-Instruct
    "llama-3-8b": _language(32, 4096, 14336, 32, 8, 128256, 8192, 5e5),
    # Qwen/Qwen1.5-*-Chat
    "qwen1.5-0.5b": _language(24, 1024, 2816, 16, 16, 151936, 32768, 1e6, **_QWEN_TIED),
    "qwen1.5-1.8b": _language(24, 2048, 5504, 16, 16, 151936, 32768, 1e6, **_QWEN),
    "qwen1.5-4b": _language(40, 2560, 6912, 20, 20, 151936, 32768, 5e6, **_QWEN),
    "qwen1.5-7b": _language(32, 4096, 11008, 32, 32, 151936, 32768, 1e6, **_QWEN),
    "qwen1.5-14b": _language(40, 5120, 13696, 40, 40, 152064, 32768, 1e6, **_QWEN),
    "qwen1.5-72b": _language(80, 8192, 24576, 64, 64, 152064, 32768, 1e6, **_QWEN),
    "qwen1.5-110b": _language(80, 8192, 49152, 64, 8, 152064, 32768, 1e6, **_QWEN),
    # Qwen/Qwen2-*-Instruct
    "qwen2-0.5b": _language(24, 896, 4864, 14, 2, 151936, 32768, 1e6, **_QWEN_TIED),
    "qwen2-7b": _language(28, 3584, 18944, 28, 4, 152064, 32768, 1e6, **_QWEN),
    "qwen2-72b": _language(80, 8192, 29568, 64, 8, 152064, 32768, 1e6, **_QWEN),
}

_CLIP_L = {
    "vision_model_type": "clip",
    "vision_num_layers": 24,
    "vision_hidden_size": 1024,
    "vision_ffn_hidden_size": 4096,
    "vision_num_attention_heads": 16,
    "vision_patch_size": 14,
    "vision_norm_epsilon": 1e-5,
    "vision_hidden_act": "quick_gelu",
    "mm_vision_select_layer": -2,
}
VISION_TOWERS: dict[str, dict[str, Any]] = {
    # openai/clip-vit-large-patch14, openai/clip-vit-large-patch14-336
    "clip-l-224": {**_CLIP_L, "vision_image_size": 224},
    "clip-l-336": {**_CLIP_L, "vision_image_size": 336},
    # google/siglip-so400m-patch14-384
    "so400m-384": {
        "vision_model_type": "siglip",
        "vision_num_layers": 27,
        "vision_hidden_size": 1152,
        "vision_ffn_hidden_size": 4304,
        "vision_num_attention_heads": 16,
        "vision_image_size": 384,
        "vision_patch_size": 14,
        "vision_norm_epsilon": 1e-6,
        "vision_hidden_act": "gelu_pytorch_tanh",
        "mm_vision_select_layer": -2,
    },
}


@dataclass(frozen=True)
class _Recipe:
    """How a family of models sees images: its usual tower and image flags."""

    tower: str
    image: dict[str, Any]
    grids: tuple[tuple[int, int], ...] = ()
    """(columns, rows) of tiles, written as pixels of the tower's tile."""


RECIPES: dict[str, _Recipe] = {
    # llava-hf/llava-1.5-*-hf
    "llava-1.5": _Recipe(
        "clip-l-336",
        {"image_aspect_ratio": "pad", "mm_patch_merge_type": "flat", "image_newline": False},
    ),
    # llava-hf/llava-v1.6-*-hf, llava-hf/llava-next-*-hf
    "llava-next": _Recipe(
        "clip-l-336",
        {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"},
        grids=((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)),
    ),
    # lmms-lab/llava-onevision-*-ov
    "llava-onevision": _Recipe(
        "so400m-384",
        {
            "image_aspect_ratio": "anyres_max_9",
            "mm_patch_merge_type": "spatial_unpad",
            "image_grid_pinpoints": "(1x1),...,(6x6)",
        },
    ),
}


def model_values(name: str) -> dict[str, Any]:
    """The model's fields that a name stands for.

    Raises:
        ValueError: no such recipe, language model or tower; names what there is.
    """
    first, _, tower = name.partition("+")
    recipe = next((known for known in RECIPES if first.startswith(known + "-")), None)
    if recipe is None:
        raise ValueError(
            f"--model {name}: does not start with one of {', '.join(RECIPES)}, followed by - and "
            "a language model, such as llava-next-vicuna-7b"
        )
    chosen = RECIPES[recipe]
    language = _look_up(LANGUAGE_MODELS, first.removeprefix(recipe + "-"), name, "language model")
    vision = _look_up(VISION_TOWERS, tower or chosen.tower, name, "vision tower")
    values = {**language, **vision, **chosen.image}
    if chosen.grids:
        tile = vision["vision_image_size"]
        values["image_grid_pinpoints"] = str(
            [[columns * tile, rows * tile] for columns, rows in chosen.grids]
        )
    return values


def _look_up(
    table: Mapping[str, dict[str, Any]], part: str, name: str, what: str
) -> dict[str, Any]:
    if part not in table:
        near = difflib.get_close_matches(part, list(table), n=1)
        question = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"--model {name}: {part!r} is no {what} of {', '.join(table)}{question}")
    return table[part]


def same_weights(
    field: str, named: Any, stored: Mapping[str, Any], model: Mapping[str, Any]
) -> bool:
    """Whether a checkpoint's value of a field belongs to the weights of a named model.

    Conversions add tokens to a vocabulary and may leave out layers of a tower that are not used.

    Args:
        field: the field's name.
        named: the named model's value of it.
        stored: all values of the checkpoint.
        model: all values of the named model.
    """
    if field == "vocab_size":
        return bool(stored[field] >= named)
    layers = ("vision_num_layers", "mm_vision_select_layer")
    if field in layers and all(part in stored and part in model for part in layers):
        built = sum(stored[part] for part in layers) == sum(model[part] for part in layers)
        return built or bool(stored[field] == named)
    return bool(stored[field] == named)

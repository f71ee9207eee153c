"""Folders of the original LLaVA code, written by hand: its names, its flat configuration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny_llava import TEXT_FAMILIES, TOWERS, tiny_llava, vision_config

CLASSES = {
    "llama": ("LlavaLlamaForCausalLM", "llava_llama"),
    "mistral": ("LlavaMistralForCausalLM", "llava_mistral"),
    "qwen2": ("LlavaQwenForCausalLM", "llava_qwen"),
}
_PARTS = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("image_newline", "model.image_newline"),
)


def original(name: str) -> str:
    """The original name of one that `save_pretrained` of transformers 5 writes."""
    for theirs, ours in _PARTS:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    raise AssertionError(name)


def projector_tensors(projector: str, width: int, hidden: int, seed: int = 5) -> dict:
    """Random tensors of a projector under the names of the original code's nn.Sequential."""
    shapes = {
        "linear": {"": (hidden, width)},
        "mlp1x_gelu": {"0.": (hidden, width)},
        "mlp2x_gelu": {"0.": (hidden, width), "2.": (hidden, hidden)},
        "mlp3x_gelu": {"0.": (hidden, width), "2.": (hidden, hidden), "4.": (hidden, hidden)},
        "mlp2x_res1x_gelu": {
            "0.": (hidden, width),
            "2.": (hidden, hidden),
            "3.pre_norm.": (hidden,),
            "3.proj.0.": (hidden, hidden),
            "3.proj.2.": (hidden, hidden),
        },
    }[projector]
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for place, shape in shapes.items():
        name = f"model.mm_projector.{place}"
        tensors[name + "weight"] = torch.randn(shape, generator=generator) * 0.1
        tensors[name + "bias"] = torch.randn(shape[0], generator=generator) * 0.1
    return tensors


def write_original(
    folder: Path,
    text: str = "vicuna",
    tower: str = "clip-336",
    *,
    aspect: str = "anyres",
    projector: str = "mlp2x_gelu",
    with_tower: bool = True,
) -> tuple[Path, Path]:
    """A folder of the original code and a Hugging Face folder of its tower's weights."""
    kind, heads, groups, ratio, theta, epsilon, tied = TEXT_FAMILIES[text]
    made = tiny_llava(folder / "made", "llava_next", text, tower)
    tensors = {original(n): t for n, t in load_file(made / "model.safetensors").items()}
    tower_prefix = "model.vision_tower.vision_tower."
    theirs = {n: t for n, t in tensors.items() if n.startswith(tower_prefix)}
    if not with_tower:
        tensors = {n: t for n, t in tensors.items() if n not in theirs}
    hidden = heads * 8
    if projector != "mlp2x_gelu":
        tensors = {n: t for n, t in tensors.items() if "mm_projector" not in n}
        tensors |= projector_tensors(projector, vision_config(tower).hidden_size, hidden)
    merge = "spatial_unpad" if aspect.startswith("anyres") else "flat"
    if merge == "flat":
        del tensors["model.image_newline"]
    name, model_type = CLASSES[kind]
    tile = TOWERS[tower][-1]
    config = {
        "architectures": [name],
        "model_type": model_type,
        "vocab_size": 300,
        "hidden_size": hidden,
        "intermediate_size": round(hidden * ratio),
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": 2048,
        "rms_norm_eps": epsilon,
        "rope_theta": theta,
        "rope_scaling": None,
        "sliding_window": None,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "use_cache": True,
        "mm_hidden_size": vision_config(tower).hidden_size,
        "mm_vision_tower": "my/tower",
        "mm_projector_type": projector,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "mm_patch_merge_type": merge,
        "image_aspect_ratio": aspect,
        "use_mm_proj": True,
    }
    if merge != "flat":
        config["image_grid_pinpoints"] = [[tile, 2 * tile], [2 * tile, tile], [2 * tile, 2 * tile]]
    target = folder / "llava"
    target.mkdir()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config))
    for path in made.glob("tokenizer*"):
        shutil.copy(path, target)
    # The published SigLIP has one layer more than the original code keeps.
    section = vision_config(tower).to_dict()
    named = {n.removeprefix(tower_prefix): t for n, t in theirs.items()}
    if kind_of(tower) == "siglip":
        section["num_hidden_layers"] += 1
        last = {n.replace(".layers.2.", ".layers.3."): t for n, t in named.items()}
        named |= {n: t.clone() + 1 for n, t in last.items() if ".layers.3." in n}
    published = folder / "tower"
    published.mkdir()
    section["architectures"] = ["AVisionModel"]
    (published / "config.json").write_text(json.dumps(section))
    save_file(named, published / "model.safetensors", metadata={"format": "pt"})
    return target, published


def kind_of(tower: str) -> str:
    """clip or siglip."""
    return TOWERS[tower][0]

"""Rewrites a Hugging Face LLaVA folder in another of the four name layouts."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

LAYOUTS = ("hub", "hub_flat", "model", "model_flat")


def rename(name: str, layout: str) -> str:
    """A name as `save_pretrained` of transformers 5 writes it (hub_flat), in `layout`."""
    if layout in ("hub", "model") and name.startswith("vision_tower."):
        name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    if layout in ("hub", "hub_flat"):
        return name
    if name == "language_model.lm_head.weight":
        return "lm_head.weight"
    return "model." + name.replace("language_model.model.", "language_model.", 1)


def rewrite(source: Path, target: Path, layout: str) -> Path:
    """Copy `source`, a folder that transformers wrote, to `target` under the names of `layout`."""
    shutil.copytree(source, target)
    weights = target / "model.safetensors"
    tensors = {rename(name, layout): tensor for name, tensor in load_file(weights).items()}
    weights.unlink()
    save_file(tensors, weights, metadata={"format": "pt"})
    return target

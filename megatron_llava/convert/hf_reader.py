"""Lazy reading of a LLaVA folder under one set of names.

Folders of transformers come in four name layouts, depending on the version that wrote them. Those
and the original code's are read under the names of the hub layout:

    layout      text                    vision                             output
    hub         language_model.model.*  vision_tower.vision_model.*        language_model.lm_head.*
    hub_flat    language_model.model.*  vision_tower.*                     language_model.lm_head.*
    model       model.language_model.*  model.vision_tower.vision_model.*  lm_head.*
    model_flat  model.language_model.*  model.vision_tower.*               lm_head.*
    original    model.*                 model.vision_tower.vision_tower.*  lm_head.*
"""

from __future__ import annotations

from collections.abc import Iterable

from megatron_llava.convert.llava_names import name_of_original
from megatron_llava.convert.weights_folder import WeightsFolder

HUB, HUB_FLAT, MODEL, MODEL_FLAT = "hub", "hub_flat", "model", "model_flat"
ORIGINAL = "original"


def detect_layout(names: Iterable[str]) -> str:
    """The name layout (see the table above). ValueError where names belong to none or to two."""
    names = list(names)
    if any(name.startswith("model.mm_projector.") for name in names):
        return ORIGINAL
    nested = {
        prefix: next((name for name in names if name.startswith(prefix)), None)
        for prefix in ("model.", "language_model.", "vision_tower.")
    }
    inside, outside = nested["model."], nested["language_model."] or nested["vision_tower."]
    if inside and outside:
        raise ValueError(f"two name layouts in one checkpoint: {inside} and {outside}")
    if not inside and not outside:
        raise ValueError("no LLaVA tensors: no name starts with model. or language_model.")
    tower = [name for name in names if name.removeprefix("model.").startswith("vision_tower.")]
    inner = [name for name in tower if "vision_tower.vision_model." in name]
    if inner and len(inner) != len(tower):
        other = next(name for name in tower if name not in inner)
        raise ValueError(f"two name layouts in one checkpoint: {inner[0]} and {other}")
    if inside:
        return MODEL if inner else MODEL_FLAT
    return HUB if inner else HUB_FLAT


def hub_name(name: str, layout: str) -> str:
    """`name` of `layout` in the hub layout."""
    if layout in (MODEL, MODEL_FLAT):
        if name.startswith("lm_head."):
            return "language_model." + name
        name = name.removeprefix("model.")
        if name.startswith("language_model."):
            name = "language_model.model." + name.removeprefix("language_model.")
    if layout in (HUB_FLAT, MODEL_FLAT) and name.startswith("vision_tower."):
        name = "vision_tower.vision_model." + name.removeprefix("vision_tower.")
    return name


class HFReader(WeightsFolder):
    """A LLaVA folder of any layout under hub names, `layout` says which."""

    layout: str

    def renamed(self, names: list[str]) -> dict[str, str]:
        self.layout = detect_layout(names)
        if self.layout == ORIGINAL:
            return {name: name_of_original(name, names) for name in names}
        return {name: hub_name(name, self.layout) for name in names}

"""Tensor names of the original LLaVA code, and of the hub layout, into each other.

original                                    hub layout
model.embed_tokens, model.layers.*, ...     language_model.model.*
lm_head.*                                   language_model.lm_head.*
model.vision_tower.vision_tower.*           vision_tower.*
model.mm_projector.0.*, .2.*                multi_modal_projector.linear_1.*, linear_2.*
model.mm_projector.* of other shapes        multi_modal_projector.*
model.image_newline                         image_newline
"""

from __future__ import annotations

from collections.abc import Iterable

TOWER = "model.vision_tower.vision_tower."
PROJECTOR = "model.mm_projector."
_HF_PROJECTOR = "multi_modal_projector."
_HF_TEXT = "language_model.model."
_LINEARS = {"0": "linear_1", "2": "linear_2"}


def has_two_linears(names: Iterable[str]) -> bool:
    """Whether the projector among original names has the shape that transformers has."""
    parts = {name.removeprefix(PROJECTOR) for name in names if name.startswith(PROJECTOR)}
    return parts == {f"{n}.{kind}" for n in _LINEARS for kind in ("weight", "bias")}


def name_of_original(name: str, names: Iterable[str]) -> str:
    """The hub-layout name of one of the original `names`; unknown ones keep theirs."""
    if name.startswith(PROJECTOR):
        rest = name.removeprefix(PROJECTOR)
        if has_two_linears(names):
            number, kind = rest.split(".")
            return f"{_HF_PROJECTOR}{_LINEARS[number]}.{kind}"
        return _HF_PROJECTOR + rest
    if name.startswith(TOWER):
        return "vision_tower." + name.removeprefix(TOWER)
    if name == "model.image_newline":
        return "image_newline"
    if name.startswith("lm_head."):
        return "language_model." + name
    for part in ("embed_tokens.", "layers.", "norm."):
        if name.startswith("model." + part):
            return _HF_TEXT + name.removeprefix("model.")
    return name


def original_name(name: str) -> str:
    """The original code's name of a tensor of the hub layout."""
    if name.startswith(_HF_TEXT):
        return "model." + name.removeprefix(_HF_TEXT)
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    if name.startswith("vision_tower."):
        return TOWER + name.removeprefix("vision_tower.")
    if name.startswith(_HF_PROJECTOR):
        rest = name.removeprefix(_HF_PROJECTOR)
        for number, linear in _LINEARS.items():
            rest = rest.replace(linear + ".", number + ".")
        return PROJECTOR + rest
    return "model." + name

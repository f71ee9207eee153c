"""A vision tower as transformers makes it, cut to the part that features come from."""

from __future__ import annotations

import json
from functools import lru_cache
from operator import attrgetter
from typing import Any

import torch

from megatron_llava.config.model import VisionConfig
from megatron_llava.config.towers import TOWERS, HFParts

Shape = tuple[int, ...]
EMBEDDINGS, LAYERS = "embeddings.", "layers."


class HFTowerParts(torch.nn.Module):
    """Embeddings and layers of a tower: what its features come from, and nothing else.

    Args:
        kind: of --vision-model-type.
        settings: the tower's --vision-hf-config.
        layers: how many are built.
    """

    def __init__(self, kind: str, settings: str, layers: int) -> None:
        super().__init__()
        parts = parts_of(kind)
        model = hf_model(kind, settings, layers, **parts.without)
        self.embeddings = model.embeddings
        self.layers = attrgetter(parts.layers)(model)


def parts_of(kind: str) -> HFParts:
    """How transformers computes the towers of a kind."""
    parts = TOWERS[kind].hf
    assert parts is not None, kind
    return parts


def hf_model(kind: str, settings: str, layers: int, **more: Any) -> Any:
    """The whole model of transformers, with random weights in float32.

    Args:
        kind, settings, layers: as of HFTowerParts.
        more: settings beside those.
    """
    from transformers import AutoConfig, AutoModel

    values = parts_of(kind).fixed | json.loads(settings) | {"num_hidden_layers": layers} | more
    config = AutoConfig.for_model(TOWERS[kind].hf_model_type, **values)
    return AutoModel.from_config(config, attn_implementation="sdpa", dtype=torch.float32)


@lru_cache(maxsize=8)
def tower_shapes(kind: str, settings: str, layers: int) -> dict[str, Shape]:
    """The parameters of HFTowerParts in their order, and their shapes; nothing is allocated."""
    with torch.device("meta"):
        tower = HFTowerParts(kind, settings, layers)
    return {name: tuple(parameter.shape) for name, parameter in tower.named_parameters()}


@lru_cache(maxsize=8)
def model_shapes(kind: str, settings: str, layers: int) -> dict[str, Shape]:
    """The same of the whole model, under the names that files have."""
    with torch.device("meta"):
        model = hf_model(kind, settings, layers)
    return {
        _stored(kind, name): tuple(parameter.shape) for name, parameter in model.named_parameters()
    }


def hf_name(kind: str, name: str) -> str:
    """The name in a file of transformers of a parameter of HFTowerParts."""
    if name.startswith(EMBEDDINGS):
        return name
    return _stored(kind, f"{parts_of(kind).layers}.{name.removeprefix(LAYERS)}")


def _stored(kind: str, name: str) -> str:
    for here, there in parts_of(kind).stored:
        name = name.replace(here, there)
    return name


def shapes_of(vision: VisionConfig) -> dict[str, Shape]:
    """``tower_shapes`` of a run's tower, which is one of transformers."""
    assert vision.vision_model_type is not None and vision.vision_hf_config is not None
    assert vision.built_layers is not None
    return tower_shapes(vision.vision_model_type, vision.vision_hf_config, vision.built_layers)


def layer_weights(vision: VisionConfig) -> int:
    """Elements of the matrices of a layer of any tower: a row costs two FLOPs for each."""
    if vision.vision_hf_config is None:
        assert vision.vision_hidden_size is not None and vision.vision_ffn_hidden_size is not None
        width = vision.vision_hidden_size
        return 4 * width**2 + 2 * width * vision.vision_ffn_hidden_size
    first = f"{LAYERS}0."
    shapes = [shape for name, shape in shapes_of(vision).items() if name.startswith(first)]
    return sum(rows * columns for rows, columns in (s for s in shapes if len(s) == 2))

"""Where each Megatron parameter lies in a `torch_dist` checkpoint, whatever layout wrote it.

Core stores one global tensor for all layers of a stack, such as [layers, rows, columns] under
`language_model.decoder.layers.self_attention.linear_qkv.weight`, and norms under the names that
Transformer Engine's fused layers have. A model on the meta device says which name and which layer
each parameter has; core's group of one rank must exist (`single_process`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from megatron_llava.config.lora import LoraConfig
from megatron_llava.convert.adapter_rules import adapter_rules
from megatron_llava.convert.convert import check_shapes, megatron_shapes
from megatron_llava.convert.root_files import run_config
from megatron_llava.convert.rules import Shape

if TYPE_CHECKING:
    from megatron_llava.models.llava import LlavaModel


@dataclass(frozen=True)
class Place:
    """One parameter in a checkpoint.

    key: name of the global tensor. global_shape: its shape, the vocabulary unpadded. layer: the
    index in front, () where the global tensor is the parameter. halves: whether core reads the
    first dimension in two halves, each split on its own (gate and up).
    """

    key: str
    global_shape: Shape
    layer: tuple[int, ...]
    shape: Shape
    halves: bool

    @property
    def offsets(self) -> Shape:
        """Where the parameter begins in the global tensor."""
        return (*self.layer, *(0 for _ in self.shape))

    @property
    def sizes(self) -> Shape:
        """Its extent in the global tensor."""
        return (*(1 for _ in self.layer), *self.shape)


def build_for_compute(
    mapping: dict[str, Any], dtype: torch.dtype, lora: LoraConfig | None = None
) -> LlavaModel:
    """The whole model on one rank, with random weights; inside `single_process` only.

    lora: the adapters of its language model, where it has any.
    """
    from megatron_llava.models.build import build_llava_model

    config = run_config(mapping, "model.yaml")
    if lora is not None:
        config = replace(config, lora=lora)
    return build_llava_model(config).to(dtype)


def places(
    mapping: dict[str, Any], lora: LoraConfig | None = None
) -> tuple[dict[str, Place], dict[str, Any]]:
    """The place of every parameter, and core's objects that lie beside them, by key.

    lora: as of `build_for_compute`.
    """
    from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensorFactory

    with torch.device("meta"):
        model = build_for_compute(mapping, torch.float32, lora)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    expected = megatron_shapes(mapping)
    if lora is not None:
        expected |= {rule.megatron: rule.megatron_shape for rule in adapter_rules(mapping, lora)}
    check_shapes("the built Megatron model", expected, shapes)
    found: dict[str, Place] = {}
    objects: dict[str, Any] = {}
    for name, entry in model.sharded_state_dict().items():
        if isinstance(entry, ShardedObject):
            objects[entry.unique_key] = entry.data
            continue
        halves = isinstance(entry, ShardedTensorFactory)
        first = _first_shard(entry.build()) if halves else entry
        found[name] = Place(
            key=first.key,
            global_shape=tuple(first.global_shape),
            layer=tuple(first.global_offset[: first.prepend_axis_num]),
            shape=shapes.pop(name),
            halves=halves,
        )
    assert not shapes, f"parameters that no checkpoint holds: {sorted(shapes)}"
    return found, objects


def _first_shard(built: Any) -> Any:
    while isinstance(built, (dict, list, tuple)):
        built = next(iter(built.values())) if isinstance(built, dict) else built[0]
    return built

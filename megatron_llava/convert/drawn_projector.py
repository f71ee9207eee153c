"""A fresh projector and newline as the tensors of a folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_llava.convert.families import projector_rules
from megatron_llava.convert.rules import Shape


class DrawnTensors:
    """The projector and the newline, drawn from a seed: the same on every machine."""

    def __init__(self, mapping: dict[str, Any], dtype: torch.dtype, seed: int) -> None:
        self.folder = Path("the drawn projector")
        self._dtype, self._seed = dtype, seed
        self._shapes: dict[str, Shape] = {
            name: shape
            for rule in projector_rules(mapping)
            for name, shape in zip(rule.hf, rule.hf_shapes, strict=True)
        }
        if mapping["image_newline"]:
            self._shapes["image_newline"] = (mapping["hidden_size"],)

    def names(self) -> list[str]:
        return sorted(self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def source(self, name: str) -> str:
        return f"{self.folder}: {name}"

    def shape(self, name: str) -> Shape:
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return self._dtype

    def tensor(self, name: str) -> Tensor:
        shape = self._shapes[name]
        generator = torch.Generator().manual_seed(self._seed * 1000 + self.names().index(name))
        if name.endswith("pre_norm.weight"):
            drawn = torch.ones(shape)
        elif name.endswith("pre_norm.bias"):
            drawn = torch.zeros(shape)
        elif name == "image_newline":
            drawn = torch.randn(shape, generator=generator) / math.sqrt(shape[0])
        else:
            # torch.nn.Linear: uniform within 1 / sqrt(fan_in), for the bias as well.
            weight = name if name.endswith("weight") else name.removesuffix("bias") + "weight"
            bound = 1 / math.sqrt(self._shapes[weight][1])
            drawn = (torch.rand(shape, generator=generator) * 2 - 1) * bound
        return drawn.to(self._dtype)

    def fingerprint(self) -> list[list[str | int]]:
        return [["seed", self._seed]]

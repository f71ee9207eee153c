"""A whole model with its adapters added, parameter by parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_llava.config.lora import LoraConfig
from megatron_llava.convert.adapter_rules import adapter_rules
from megatron_llava.convert.convert import megatron_shapes
from megatron_llava.convert.families import table
from megatron_llava.convert.rules import Rule, Shape
from megatron_llava.convert.tensor_source import converted

if TYPE_CHECKING:
    from megatron_llava.convert.whole_model import WholeModel


class MergedTensors:
    """The parameters of a whole model with its adapters added, each made when it is asked for.

    Args:
        base: the frozen weights, whose dtypes the result has.
        adapters: factors, and the parameters that the run has its own of.
        mapping: the model of the run.
        lora: what the adapters are.
    """

    def __init__(
        self,
        base: WholeModel,
        adapters: WholeModel,
        mapping: dict[str, Any],
        lora: LoraConfig,
    ) -> None:
        self._base, self._adapters, self._scaling = base, adapters, lora.scaling
        self._shapes = megatron_shapes(mapping)
        self._rules = {rule.megatron: rule for rule in table(mapping).rules}
        self._factors = {rule.megatron: rule for rule in adapter_rules(mapping, lora)}
        self._of_run = set(adapters.names())

    def fingerprint(self) -> list[Any]:
        """What tells these weights from others."""
        return [self._base.fingerprint(), self._adapters.fingerprint()]

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> Shape:
        shape = self._shapes[name]
        assert shape is not None
        return shape

    def dtype(self, name: str) -> torch.dtype:
        # The run may have trained in another one.
        return self._base.dtype(self._base.names()[0])

    def tensor(self, name: str) -> Tensor:
        if name in self._of_run:
            return converted(self._adapters.tensor(name), self.dtype(name), name)
        weight = self._base.tensor(name)
        factor = name.removesuffix("weight") + "lora."
        if factor + "a" not in self._factors:
            return weight
        a, b = (self._parts(factor + letter) for letter in "ab")
        rule = self._rules[name]
        parts = list(rule.to_hf(weight.float()))
        for number, place in enumerate(_places(rule, self._factors[factor + "a"])):
            parts[place] = parts[place] + self._scaling * (b[number] @ a[number])
        return converted(rule.to_megatron(parts), weight.dtype, name)

    def _parts(self, name: str) -> Sequence[Tensor]:
        return self._factors[name].to_hf(self._adapters.tensor(name).float())


def _places(rule: Rule, factors: Rule) -> list[int]:
    """Which of the tensors that a fused weight is made of the factors belong to."""
    linears = [name.removesuffix("weight") for name in rule.hf]
    return [linears.index(name.removesuffix("lora_A.weight")) for name in factors.hf]

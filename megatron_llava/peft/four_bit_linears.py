"""Core's parallel linears whose frozen weight is held in 4 bits, with and without an adapter.

A linear is built and loaded with its weight as it is in a checkpoint; then each rank quantises its
share. Neither a checkpoint nor an optimizer sees the packed weight.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

from megatron_llava.config.lora import LoraConfig
from megatron_llava.ops.four_bit import FourBitWeight, four_bit_linear
from megatron_llava.peft.linears import LoraColumnParallelLinear, LoraRowParallelLinear
from megatron_llava.peft.own_product import OwnProduct


class FourBitLinear(OwnProduct):
    """What core's two parallel linears share here: the weight and the product."""

    four_bit: FourBitWeight | None = None
    """None until it is quantised: the weight is then still whole."""

    def quantize(self, lora: LoraConfig) -> None:
        """Put the packed weight in the place of the frozen one, whose memory is free then."""
        assert self.four_bit is None and not self.weight.requires_grad
        self.four_bit = FourBitWeight(
            self.weight,
            lora.bnb_4bit_quant_type,
            double_quant=lora.bnb_4bit_use_double_quant,
        )
        del self.weight
        # Core hands it to the product below, and a checkpoint leaves it out.
        self.register_buffer("weight", self.four_bit.packed, persistent=False)

    def product(self, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """See OwnProduct."""
        assert self.four_bit is not None, "it is quantised once its weight is loaded"
        return four_bit_linear(input, self.four_bit)


class FourBitColumnParallelLinear(FourBitLinear, ColumnParallelLinear):
    """Without an adapter, its outputs split over the tensor-parallel ranks."""


class FourBitRowParallelLinear(FourBitLinear, RowParallelLinear):
    """Without an adapter, its inputs split over the tensor-parallel ranks."""


class FourBitLoraColumnParallelLinear(FourBitLinear, LoraColumnParallelLinear):
    """With an adapter, its outputs split over the tensor-parallel ranks."""


class FourBitLoraRowParallelLinear(FourBitLinear, LoraRowParallelLinear):
    """With an adapter, its inputs split over the tensor-parallel ranks."""


def quantize_base(models: Iterable[torch.nn.Module], lora: LoraConfig) -> None:
    """Quantise the decoder's linears of models whose weights are loaded, one after the other.

    Does nothing where the settings do not ask for it.
    """
    if not lora.load_in_4bit:
        return
    for model in models:
        for module in model.modules():
            if isinstance(module, FourBitLinear):
                module.quantize(lora)

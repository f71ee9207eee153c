"""Core's parallel linears whose frozen weight is held in 4 bits, with and without an adapter.

A linear is built and loaded with its weight as it is in a checkpoint; then each rank quantises its
share. Neither a checkpoint nor an optimizer sees the packed weight.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

from megatron_llava.config.lora import LoraConfig
from megatron_llava.ops.four_bit import FourBitWeight, four_bit_linear
from megatron_llava.peft.linears import LoraColumnParallelLinear, LoraRowParallelLinear


class FourBitLinear(torch.nn.Module):
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

    def _forward_impl(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        allreduce_dgrad: bool,
        sequence_parallel: bool,
        tp_group: dist.ProcessGroup | None,
        **more: Any,
    ) -> torch.Tensor:
        """Core's protocol: input [S, B, I] to [S, B, O], with the collectives of its backward."""
        assert self.four_bit is not None, "it is quantised once its weight is loaded"
        if sequence_parallel:
            input = gather_from_sequence_parallel_region(
                input, tensor_parallel_output_grad=True, group=tp_group
            )
        elif allreduce_dgrad:
            input = copy_to_tensor_model_parallel_region(input, group=tp_group)
        output = four_bit_linear(input, self.four_bit)
        return output if bias is None else output + bias


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

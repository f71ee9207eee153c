"""The classes of a decoder layer's linears: of core, in emulated FP8, or frozen in 4 bits."""

from __future__ import annotations

from typing import NamedTuple

from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

from megatron_llava.models.fp8_layers import (
    Fp8ColumnParallelLinear,
    Fp8LoraColumnParallelLinear,
    Fp8LoraRowParallelLinear,
    Fp8RowParallelLinear,
)
from megatron_llava.peft.four_bit_linears import (
    FourBitColumnParallelLinear,
    FourBitLoraColumnParallelLinear,
    FourBitLoraRowParallelLinear,
    FourBitRowParallelLinear,
)
from megatron_llava.peft.linears import LoraColumnParallelLinear, LoraRowParallelLinear


class LayerLinears(NamedTuple):
    """Those whose outputs and whose inputs are split, without and with adapters."""

    column: type = ColumnParallelLinear
    row: type = RowParallelLinear
    lora_column: type = LoraColumnParallelLinear
    lora_row: type = LoraRowParallelLinear


_FP8 = LayerLinears(
    Fp8ColumnParallelLinear,
    Fp8RowParallelLinear,
    Fp8LoraColumnParallelLinear,
    Fp8LoraRowParallelLinear,
)
_FOUR_BIT = LayerLinears(
    FourBitColumnParallelLinear,
    FourBitRowParallelLinear,
    FourBitLoraColumnParallelLinear,
    FourBitLoraRowParallelLinear,
)


def layer_linears(*, fp8: bool, four_bit: bool) -> LayerLinears:
    """The classes that the settings of a layer ask for."""
    assert not (fp8 and four_bit), "a rule"
    if fp8:
        return _FP8
    return _FOUR_BIT if four_bit else LayerLinears()

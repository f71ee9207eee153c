"""Frozen weights in 4 bits (NF4 or FP4 of bitsandbytes), and the product with them.

QLoRA (Dettmers et al., 2023): a weight is cut into blocks of 64 numbers along its rows; of each
block its largest magnitude is kept, and of each number 4 bits, an index into 16 levels between -1
and 1. With double quantisation the magnitudes are kept in 8 bits, 256 of them sharing a scale.
Shape suffixes: ... positions, I inputs, O outputs.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from megatron_llava.config.lora import FOUR_BIT_BLOCK, LoraConfig

_LEVELS = 16
_BLOCKS_OF_A_SCALE = 256


def check_bitsandbytes(lora: LoraConfig) -> None:
    """Raise ValueError where --load-in-4bit is given and the package is not installed."""
    if lora.load_in_4bit and find_spec("bitsandbytes") is None:
        raise ValueError(
            "--load-in-4bit: bitsandbytes is not installed; pip install "
            "'megatron-llava[bitsandbytes]', or drop the flag"
        )


class FourBitWeight:
    """A weight [O, I] as bitsandbytes packs it.

    Args:
        weight: bfloat16, float16 or float32 [O, I]; what is unpacked has its dtype.
        quant_type: the 16 levels: nf4 or fp4.
        double_quant: whether the magnitudes of blocks are kept in 8 bits.
    """

    def __init__(self, weight: torch.Tensor, quant_type: str, *, double_quant: bool) -> None:
        from bitsandbytes import functional

        self._unpack = functional.dequantize_4bit
        self.packed, self._state = functional.quantize_4bit(
            weight.detach().contiguous(),
            blocksize=FOUR_BIT_BLOCK,
            compress_statistics=double_quant,
            quant_type=quant_type,
        )

    def unpacked(self) -> torch.Tensor:
        """[O, I], the nearest levels times the magnitudes of their blocks."""
        return self._unpack(self.packed, self._state)

    def tensors(self) -> list[torch.Tensor]:
        """What is kept of this weight alone, for counting its bytes."""
        state, nested = self._state, self._state.state2
        inner = [] if nested is None else [nested.absmax, state.offset]
        return [self.packed, state.absmax, state.code, *inner]


def four_bit_bytes(numel: int, *, double_quant: bool) -> int:
    """Bytes that a weight of so many numbers takes: its indices, levels and magnitudes."""
    blocks = -(-numel // FOUR_BIT_BLOCK)
    magnitudes = blocks + 4 * -(-blocks // _BLOCKS_OF_A_SCALE) + 4 if double_quant else 4 * blocks
    return -(-numel // 2) + magnitudes + 4 * _LEVELS


class _FourBitLinear(torch.autograd.Function):
    """See ``four_bit_linear``."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: FourBitWeight) -> torch.Tensor:
        ctx.weight = weight
        return x @ weight.unpacked().t()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient @ ctx.weight.unpacked(), None


def four_bit_linear(x: torch.Tensor, weight: FourBitWeight) -> torch.Tensor:
    """``x @ weight.T`` for [..., I], in the dtype of both; only ``x`` has a gradient.

    The weight is unpacked in the forward and once more in the backward, so that neither it nor the
    input is kept between them.
    """
    return _FourBitLinear.apply(x, weight)

"""Low-rank adapters of the language model (LoRA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_llava.config.fields import flag

PARTS: dict[str, tuple[str, ...]] = {
    "linear_qkv": ("q_proj", "k_proj", "v_proj"),
    "linear_proj": ("o_proj",),
    "linear_fc1": ("gate_proj", "up_proj"),
    "linear_fc2": ("down_proj",),
}
"""Core's linears, and the linears of ``transformers`` that each is made of, in its order."""

TARGET_MODULES = tuple(part for parts in PARTS.values() for part in parts)
"""The linears of a decoder layer, by their names in ``transformers``."""


FOUR_BIT_BLOCK = 64
"""Numbers of a weight in 4 bits that share a magnitude, as in bitsandbytes and QLoRA."""


def targeted_parts(linear: str, targets: Sequence[str]) -> tuple[str, ...]:
    """Those parts of one of core's linears that have adapters, in its order."""
    return tuple(part for part in PARTS[linear] if part in targets)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters beside the language model's linears, whose own weights are frozen."""

    lora_rank: int = flag(
        0,
        "Rank of the adapters; the language model's own weights are frozen then. 0: no adapters",
        minimum=0,
    )
    lora_alpha: float = flag(
        64.0, "An adapter adds lora_alpha / lora_rank times its product", above=0
    )
    lora_dropout: float = flag(
        0.05, "Share of an adapter's inputs that are left out while training", minimum=0, below=1
    )
    lora_target_modules: tuple[str, ...] = flag(
        TARGET_MODULES, "Linears of the language model that get adapters, comma-separated"
    )

    load_in_4bit: bool = flag(
        False,
        "Hold the frozen linears of the decoder's layers in 4 bits (QLoRA); needs bitsandbytes",
    )
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = flag("nf4", "The 16 levels of --load-in-4bit")
    bnb_4bit_use_double_quant: bool = flag(
        False, "Hold the magnitudes of blocks of --load-in-4bit in 8 bits instead of 32"
    )

    @property
    def adapts(self) -> bool:
        """Whether there are adapters."""
        return self.lora_rank > 0

    @property
    def scaling(self) -> float:
        """What an adapter's product is multiplied by."""
        return self.lora_alpha / self.lora_rank

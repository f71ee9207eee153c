"""Low-rank adapters of the language model (LoRA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

    @property
    def adapts(self) -> bool:
        """Whether there are adapters."""
        return self.lora_rank > 0

    @property
    def scaling(self) -> float:
        """What an adapter's product is multiplied by."""
        return self.lora_alpha / self.lora_rank

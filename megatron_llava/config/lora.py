"""Low-rank adapters of the language model (LoRA)."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_llava.config.fields import flag

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linears of a decoder layer, by their names in ``transformers``."""


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

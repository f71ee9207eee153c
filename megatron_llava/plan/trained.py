"""Which parts of a model learn in a run: whole, through adapters, or not at all."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_llava.config.run import RunConfig


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What learns. With ``lora_rank`` the language model is frozen and has adapters that learn."""

    tower: bool
    projector: bool
    language: bool
    lora_rank: int | None = None

    @property
    def before_decoder(self) -> bool:
        """Whether a gradient must reach the input of the decoder."""
        return self.tower or self.projector or self.language

    @property
    def decoder_keeps_activations(self) -> bool:
        return self.before_decoder or self.lora_rank is not None


def trained(config: RunConfig, lora_rank: int | None = None) -> Trained:
    """What ``--mm-tunable-parts`` says; adapters take the place of the language model's weights."""
    parts = config.training.mm_tunable_parts
    return Trained(
        tower="mm_vision_tower" in parts,
        projector="mm_mlp_adapter" in parts,
        language="mm_language_model" in parts and lora_rank is None,
        lora_rank=lora_rank,
    )

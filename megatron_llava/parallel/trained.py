"""Which parts of a model learn in a run."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_llava.config.run import RunConfig
from megatron_llava.config.training import part_of


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What learns. With adapters the language model's own weights do not."""

    tower: bool
    projector: bool
    language: bool
    adapters: bool

    def learns(self, name: str) -> bool:
        """Whether a parameter of LlavaModel does. The learned rows of images do with adapters."""
        if part_of(name) != "mm_language_model":
            return self.tower if part_of(name) == "mm_vision_tower" else self.projector
        of_language = name.startswith("language_model.")
        return self.language or (self.adapters and (".lora." in name or not of_language))


def trained(config: RunConfig) -> Trained:
    """What ``--mm-tunable-parts`` and ``--lora-rank`` say."""
    parts, adapts = config.training.mm_tunable_parts, config.lora.adapts
    return Trained(
        tower="mm_vision_tower" in parts,
        projector="mm_mlp_adapter" in parts,
        language="mm_language_model" in parts and not adapts,
        adapters=adapts,
    )

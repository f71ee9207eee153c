"""Which parts of the model learn (``--mm-tunable-parts``)."""

from __future__ import annotations

from collections.abc import Iterable

from megatron_llava.models.llava import LlavaModel


def part_of(name: str) -> str:
    """The tunable part that a parameter of LlavaModel belongs to.

    As in LLaVA-NeXT's trainer, ``mm_language_model`` is everything outside the tower and the
    projector: also the embeddings, the output layer and ``image_newline``.
    """
    if name.startswith("vision_model."):
        return "mm_vision_tower"
    if name.startswith("vision_projection."):
        return "mm_mlp_adapter"
    return "mm_language_model"


def freeze_parts(model: LlavaModel, tunable_parts: Iterable[str]) -> None:
    """Let only the named parts have gradients; the others get no buffers and no optimizer state."""
    tunable = set(tunable_parts)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in tunable)

"""Which parts of the model learn (``--mm-tunable-parts``, ``--lora-rank``)."""

from __future__ import annotations

from collections.abc import Iterable

from megatron_llava.config.training import part_of
from megatron_llava.models.image_rows import OPTIONAL_ROWS
from megatron_llava.models.llava import LlavaModel
from megatron_llava.peft.targets import is_adapter


def learns(name: str, tunable_parts: Iterable[str], *, adapts: bool) -> bool:
    """Whether a parameter of LlavaModel is trained.

    Args:
        adapts: the language model has adapters: of ``mm_language_model`` they and the learned rows
            of images are trained, and its own weights are not.
    """
    part = part_of(name)
    if part not in set(tunable_parts):
        return False
    return not adapts or part != "mm_language_model" or is_adapter(name) or name in OPTIONAL_ROWS


def freeze_parts(model: LlavaModel, tunable_parts: Iterable[str], *, adapts: bool = False) -> None:
    """Let only the named parts have gradients; the others get no buffers and no optimizer state.

    Args:
        adapts: see ``learns``.
    """
    tunable = set(tunable_parts)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learns(name, tunable, adapts=adapts))

"""Names of the tensors in an adapter folder of PEFT, and those of the hub layout.

PEFT names what it adapts as the model in memory does. Written are the names of the classes of
transformers 5; those of older versions and of the original code are read as well:

    transformers 5      base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.weight
    before 4.52         base_model.model.language_model.model.layers.0...
    original LLaVA      base_model.model.model.layers.0...
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_llava.config.lora import TARGET_MODULES

PREFIX = "base_model.model."
PROJECTOR = "multi_modal_projector"
_TEXT = "language_model.model."
_IN_MEMORY = "model.language_model."
_LAYOUTS = (_IN_MEMORY, _TEXT, "model.")


def peft_name(hub: str) -> str:
    """A name of the hub layout in an adapter folder."""
    if hub.startswith(_TEXT):
        return PREFIX + _IN_MEMORY + hub.removeprefix(_TEXT)
    return f"{PREFIX}model.{hub}"


def hub_name_of_peft(name: str) -> str:
    """A name of an adapter folder in the hub layout.

    Raises:
        ValueError: it names neither the language model's layers nor the projector.
    """
    inner = name.removeprefix(PREFIX)
    for layout in _LAYOUTS:
        if inner.startswith(layout + "layers."):
            return _TEXT + inner.removeprefix(layout)
    inner = inner.removeprefix("model.")
    if inner.startswith(PROJECTOR + ".") and ".lora_" not in inner:
        return inner
    raise ValueError(
        f"{name} is neither of the language model's layers nor the projector's weight: adapters of "
        "other parts are not supported"
    )


def target_pattern(targets: Sequence[str]) -> str:
    """PEFT's `target_modules` for the language model's layers alone.

    A list of the bare names would match the vision tower's q_proj, k_proj and v_proj as well.
    """
    names = "|".join(target for target in TARGET_MODULES if target in targets)
    return rf"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.({names})"

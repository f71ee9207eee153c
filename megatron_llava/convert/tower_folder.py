"""A Hugging Face folder of a vision model as the source of a vision tower."""

from __future__ import annotations

from typing import Any

from megatron_llava.config.towers import HF_TOWERS, TOWERS, kind_of
from megatron_llava.convert.families import VISION
from megatron_llava.convert.hf_config import read_json
from megatron_llava.convert.hf_folder import CONFIG_FILE
from megatron_llava.convert.weights_folder import WeightsFolder

# Parts of a vision model, where a folder stores them without a prefix.
_PARTS = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.", "head.")
# Of a model of images and text: what a tower does not have.
_NO_TOWER = (
    "text_model.",
    "text_projection.",
    "visual_projection.",
    "logit_scale",
    "logit_bias",
)


class TowerFolder(WeightsFolder):
    """Tensors of a vision model under the hub names of a LLaVA model's tower.

    A folder may hold the vision model alone or beside a text model, which is left out.
    """

    def renamed(self, names: list[str]) -> dict[str, str]:
        kept = [name for name in names if not name.startswith(_NO_TOWER)]
        if any(name.startswith("vision_model.") for name in kept):
            return {name: VISION + name.removeprefix("vision_model.") for name in kept}
        if kind_of(str(read_json(self.folder / CONFIG_FILE).get("model_type"))) in HF_TOWERS:
            return {name: VISION + name for name in kept}
        unknown = next((name for name in kept if not name.startswith(_PARTS)), None)
        if unknown is not None or not kept:
            raise ValueError(f"no CLIP or SigLIP vision model: it has {unknown or 'no tensor'}")
        return {name: VISION + name for name in kept}

    def config(self) -> dict[str, Any]:
        """The vision model's section of config.json, with its model_type.

        Raises:
            ValueError: another kind of model.
        """
        config = read_json(self.folder / CONFIG_FILE)
        section: dict[str, Any] = config.get("vision_config", config)
        if not isinstance(section, dict):
            raise ValueError(
                f"{self.folder / CONFIG_FILE}: vision_config is {section!r:.60}; give an object"
            )
        model_type = section.get("model_type")
        if model_type is None and (outer := TOWERS.get(str(config.get("model_type")))) is not None:
            model_type = outer.hf_model_type
        if kind_of(str(model_type)) is None:
            raise ValueError(
                f"{self.folder / CONFIG_FILE}: model_type is {config.get('model_type')!r}; "
                f"supported: {', '.join(kind.hf_model_type for kind in TOWERS.values())}"
            )
        return {**section, "model_type": model_type}

    def image_processor(self) -> dict[str, Any]:
        """Settings of its image processor; empty where it has none."""
        path = self.folder / "preprocessor_config.json"
        return read_json(path) if path.exists() else {}

"""A Hugging Face LLaVA folder of any class as transformers computes it, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from megatron_llava.convert.convert import LISTED
from megatron_llava.convert.hf_folder import read_image_processor

# Settings of an image processor that name classes.
_CLASS_KEYS = ("image_processor_type", "processor_class", "feature_extractor_type")


def pillow_image_processor(folder: Path, model_type: str) -> Any:
    """The folder's image processor in transformers' Pillow implementation.

    The others resize differently, and need a package that is not here.
    """
    settings = read_image_processor(folder)
    if model_type == "llava":
        # LLaVA-1.5 folders have the processor of their tower, or one that pads.
        name = str(settings.get("image_processor_type", "CLIPImageProcessor"))
        family = next((f for f in ("siglip", "llava", "clip") if name.lower().startswith(f)), None)
        if family is None:
            raise ValueError(f"{folder}: no Pillow implementation of {name} is known")
    else:
        family = model_type
    module = import_module(f"transformers.models.{family}.image_processing_pil_{family}")
    class_name = {
        "llava_next": "LlavaNextImageProcessorPil",
        "llava_onevision": "LlavaOnevisionImageProcessorPil",
        "llava": "LlavaImageProcessorPil",
        "clip": "CLIPImageProcessorPil",
        "siglip": "SiglipImageProcessorPil",
    }[family]
    kept = {key: value for key, value in settings.items() if key not in _CLASS_KEYS}
    return getattr(module, class_name)(**kept)


class HFModel:
    """Model and image processor of a folder, on the CPU.

    Args:
        folder: weights, config and image processor settings.
        model_type: llava, llava_next or llava_onevision.

    Raises:
        ValueError: tensors are missing, surplus or of another shape for transformers.
    """

    def __init__(self, folder: Path, model_type: str) -> None:
        from transformers import AutoModelForImageTextToText

        self.model_type = model_type
        self.processor = pillow_image_processor(folder, model_type)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="sdpa",
            local_files_only=True,
            output_loading_info=True,
        )
        model, loading = loaded
        for kind, names in loading.items():
            if names:
                raise ValueError(
                    f"{folder}: transformers finds {len(names)} {kind.replace('_', ' ')}: "
                    f"{', '.join(map(str, sorted(names)[:LISTED]))}"
                )
        self.model = model.eval()

    def pixels(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """What the model takes for the images of one sample; nothing for none."""
        if not images:
            return {}
        # OneVision counts the images of a sample by the list that they stand in.
        nested = [list(images)] if self.model_type == "llava_onevision" else list(images)
        return dict(self.processor(images=nested, return_tensors="pt"))

    @torch.no_grad()
    def logits(self, expanded_ids: Sequence[int], images: Sequence[Image.Image]) -> Tensor:
        """Logits [R, vocabulary] of one sample, the image token repeated for each visual token."""
        ids = torch.tensor([list(expanded_ids)])
        logits: Tensor = self.model(input_ids=ids, **self.pixels(images)).logits[0]
        return logits

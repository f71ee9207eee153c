"""Logits of transformers against ours, on a drawn image between text, in float32."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from megatron_llava.config.image import ImageSettings
from megatron_llava.convert.checkpoint import build_for_compute, load_state
from megatron_llava.convert.families import table
from megatron_llava.convert.hf_folder import read_image_processor
from megatron_llava.convert.root_files import read_root_mapping, run_config
from megatron_llava.convert.single_process import single_process
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX
from megatron_llava.vision.settings import image_settings
from megatron_llava.vision.token_layout import number_of_tokens

if TYPE_CHECKING:
    from megatron_llava.data.packed_batch import TensorBatch

LOGITS_THRESHOLD = 1e-4
TEXT_TOKENS = 24  # before and after the image
BYTES_PER_PARAMETER = 8  # the checkpoint's tensors, at most float32, and a float32 model


def drawn_image(tile_size: int) -> Image.Image:
    """A gradient with a circle and a bar: wide, and no multiple of anything."""
    width, height = tile_size * 7 // 4 + 3, tile_size * 9 // 8 + 1
    row = np.linspace(0, 255, width)[None, :].repeat(height, axis=0)
    column = np.linspace(255, 0, height)[:, None].repeat(width, axis=1)
    pixels = np.stack([row, column, (row + column) / 2], axis=-1).astype(np.uint8)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    draw.ellipse((width // 8, height // 6, width // 2, height * 2 // 3), fill=(200, 30, 40))
    draw.rectangle((width * 2 // 3, height // 5, width * 5 // 6, height), fill=(10, 90, 220))
    return image


def text_ids(mapping: dict[str, Any]) -> list[int]:
    """Token ids spread over the vocabulary, with one image in the middle."""
    vocab, image = mapping["vocab_size"], mapping["image_token_index"]
    stride = max(vocab // (2 * TEXT_TOKENS), 1)
    ids = [number * stride % vocab for number in range(2 * TEXT_TOKENS)]
    ids = [number if number != image else (number + 1) % vocab for number in ids]
    return [*ids[:TEXT_TOKENS], IMAGE_TOKEN_INDEX, *ids[TEXT_TOKENS:]]


def megatron_logits(root: Path, mapping: dict[str, Any], state: dict[str, Tensor]) -> Tensor:
    """Logits [R, vocabulary] of the drawn sample, float32, one rank on the CPU."""
    settings = image_settings(run_config(mapping, str(root / "model.yaml")))
    with single_process(), torch.no_grad():
        batch = _drawn_batch(mapping, settings)
        model = build_for_compute(mapping, torch.float32).eval()
        model.load_state_dict(state)
        rows = torch.arange(batch.num_rows)
        return model.logits(model.decode(batch), rows)


def _drawn_batch(mapping: dict[str, Any], settings: ImageSettings) -> TensorBatch:
    # The store is made of core's datasets, so these wait for `single_process` as well.
    from megatron_llava.data.collate import collate
    from megatron_llava.data.store import Sample

    image = drawn_image(settings.tile_size)
    encoded = io.BytesIO()
    image.save(encoded, format="PNG")
    ids = np.array(text_ids(mapping), dtype=np.int32)
    sample = Sample(
        token_ids=ids,
        label_mask=np.zeros(len(ids), dtype=np.uint8),
        image_sizes=(image.size,),
        images=(encoded.getvalue(),),
        source="the drawn sample",
    )
    return collate([sample], settings).to_torch()


def hf_logits(hf_folder: Path, mapping: dict[str, Any]) -> Tensor:
    """Logits [R, vocabulary] of the same sample by transformers and its own image processor."""
    from transformers import LlavaNextForConditionalGeneration
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    settings = image_settings(run_config(mapping, "model.yaml"))
    image = drawn_image(settings.tile_size)
    kept = {
        key: value
        for key, value in read_image_processor(hf_folder).items()
        if key not in ("image_processor_type", "processor_class", "feature_extractor_type")
    }
    processor = LlavaNextImageProcessorPil(**kept)
    inputs = processor(images=image, return_tensors="pt")
    expanded = [mapping["image_token_index"]] * number_of_tokens(image.size, settings)
    ids = text_ids(mapping)
    place = ids.index(IMAGE_TOKEN_INDEX)
    ids[place : place + 1] = expanded
    model = LlavaNextForConditionalGeneration.from_pretrained(
        hf_folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    with torch.no_grad():
        output = model(input_ids=torch.tensor([ids]), **inputs)
    logits: Tensor = output.logits[0]
    return logits


def memory_shortage(root: str | Path) -> str | None:
    """Why the logits cannot be compared on this machine; None where there is enough memory."""
    mapping = read_root_mapping(Path(root))
    parameters = sum(math.prod(rule.megatron_shape) for rule in table(mapping).rules)
    needed = parameters * BYTES_PER_PARAMETER
    available = psutil.virtual_memory().available
    if needed <= available:
        return None
    return f"that needs {needed / 1e9:.0f} GB of memory, and {available / 1e9:.0f} GB are free"


def verify_logits(root: str | Path, hf_folder: str | Path, iteration: int | None = None) -> float:
    """Largest absolute difference of the logits; ValueError where it is above the threshold."""
    root, hf_folder = Path(root), Path(hf_folder)
    mapping = read_root_mapping(root)
    ours = megatron_logits(root, mapping, load_state(root, mapping, iteration))
    theirs = hf_logits(hf_folder, mapping)
    difference = float((ours - theirs).abs().max())
    if not difference <= LOGITS_THRESHOLD:
        raise ValueError(
            f"{root} and {hf_folder}: logits differ by up to {difference:.2e}, "
            f"more than {LOGITS_THRESHOLD:.0e}"
        )
    return difference

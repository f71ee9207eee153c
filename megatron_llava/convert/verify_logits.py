"""Logits of transformers against ours in float32: an image, several images, and text alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from megatron_llava.config.image import ImageSettings
from megatron_llava.convert.checkpoint import load_state
from megatron_llava.convert.families import table
from megatron_llava.convert.hf_config import read_json
from megatron_llava.convert.hf_folder import CONFIG_FILE
from megatron_llava.convert.hf_images import VIEWS_OF_CLASS
from megatron_llava.convert.hf_model import HFModel
from megatron_llava.convert.places import build_for_compute
from megatron_llava.convert.root_files import read_root_mapping, run_config
from megatron_llava.convert.single_process import single_process
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX
from megatron_llava.vision.settings import image_settings
from megatron_llava.vision.token_layout import number_of_tokens

LOGITS_THRESHOLD = 1e-4
TEXT_TOKENS = 24  # before, between and after the images
BYTES_PER_PARAMETER = 8  # the checkpoint's tensors, at most float32, and a float32 model

Case = tuple[list[int], list[Image.Image]]
"""Token ids with IMAGE_TOKEN_INDEX at each image, and the images."""


def drawn_image(tile_size: int, wide: float = 7 / 4, high: float = 9 / 8) -> Image.Image:
    """A gradient with a circle and a bar, so many tiles wide and high, no multiple of anything."""
    width, height = int(tile_size * wide) + 3, int(tile_size * high) + 1
    row = np.linspace(0, 255, width)[None, :].repeat(height, axis=0)
    column = np.linspace(255, 0, height)[:, None].repeat(width, axis=1)
    pixels = np.stack([row, column, (row + column) / 2], axis=-1).astype(np.uint8)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    draw.ellipse((width // 8, height // 6, width // 2, height * 2 // 3), fill=(200, 30, 40))
    draw.rectangle((width * 2 // 3, height // 5, width * 5 // 6, height), fill=(10, 90, 220))
    return image


def cases(
    mapping: dict[str, Any], settings: ImageSettings, photographs: Sequence[Image.Image] = ()
) -> dict[str, Case]:
    """What both are asked: drawn images, and the user's, each alone and all of them together."""
    side = settings.tile_size
    drawn = [drawn_image(side), drawn_image(side, 0.6, 1.9), drawn_image(side, 1.0, 0.4)]
    found: dict[str, Case] = {"text alone": (_text_ids(mapping, 0), [])}
    for name, images in (("image", drawn), ("photograph", list(photographs))):
        for number, image in enumerate(images):
            found[f"{name} {number + 1}"] = (_text_ids(mapping, 1), [image])
        if len(images) > 1:
            found[f"{len(images)} {name}s"] = (_text_ids(mapping, len(images)), images)
    return found


def _text_ids(mapping: dict[str, Any], num_images: int) -> list[int]:
    """Token ids spread over the vocabulary, with images between stretches of them."""
    vocab, image = mapping["vocab_size"], mapping["image_token_index"]
    count = TEXT_TOKENS * (num_images + 1)
    stride = max(vocab // count, 1)
    reserved = {image, mapping.get("video_token_index")}
    plain = [number for number in range(vocab) if number not in reserved]
    ids = [plain[number * stride % len(plain)] for number in range(count)]
    for number in range(num_images):
        ids.insert(TEXT_TOKENS * (number + 1) + number, IMAGE_TOKEN_INDEX)
    return ids


def megatron_logits(
    root: Path, mapping: dict[str, Any], state: dict[str, Tensor], asked: dict[str, Case]
) -> dict[str, Tensor]:
    """Logits [R, vocabulary] of each case, float32, one rank on the CPU."""
    settings = image_settings(run_config(mapping, str(root / "model.yaml")))
    with single_process(), torch.no_grad():
        # The store is made of core's datasets, so these wait for `single_process` as well.
        from megatron_llava.convert.verify_batch import batch_of

        model = build_for_compute(mapping, torch.float32).eval()
        model.load_state_dict(state)
        logits = {}
        for name, (ids, images) in asked.items():
            batch = batch_of(ids, images, settings)
            logits[name] = model.logits(model.decode(batch), torch.arange(batch.num_rows))
        return logits


def expanded_ids(
    ids: Sequence[int], images: Sequence[Image.Image], image_token: int, settings: ImageSettings
) -> list[int]:
    """Token ids as transformers takes them: the image token once for each visual token."""
    single_view = settings.single_view(len(images))
    sizes = iter(image.size for image in images)
    expanded: list[int] = []
    for token in ids:
        if token == IMAGE_TOKEN_INDEX:
            count = number_of_tokens(next(sizes), settings, single_view=single_view)
            expanded += [image_token] * count
        else:
            expanded.append(token)
    return expanded


def hf_logits(
    hf_folder: Path, settings: ImageSettings, asked: dict[str, Case]
) -> dict[str, Tensor]:
    """Logits [R, vocabulary] of each case by transformers and its own image processor."""
    config = read_json(hf_folder / CONFIG_FILE)
    model = HFModel(hf_folder, config["model_type"])
    image_token = model.model.config.image_token_id
    return {
        name: model.logits(expanded_ids(ids, images, image_token, settings), images)
        for name, (ids, images) in asked.items()
    }


def memory_shortage(root: str | Path) -> str | None:
    """Why the logits cannot be compared on this machine; None where there is enough memory."""
    mapping = read_root_mapping(Path(root))
    parameters = sum(math.prod(rule.megatron_shape) for rule in table(mapping).rules)
    needed = parameters * BYTES_PER_PARAMETER
    available = psutil.virtual_memory().available
    if needed <= available:
        return None
    return f"that needs {needed / 1e9:.0f} GB of memory, and {available / 1e9:.0f} GB are free"


def verify_logits(
    root: str | Path,
    hf_folder: str | Path,
    iteration: int | None = None,
    photographs: Sequence[Image.Image] = (),
    base: str | Path | None = None,
) -> dict[str, float]:
    """Largest absolute difference of the logits of each case.

    photographs: images of the user's, beside the drawn ones. base: as of `export_hf`. ValueError
    naming the case where a difference is above the threshold.
    """
    root, hf_folder = Path(root), Path(hf_folder)
    mapping = read_root_mapping(root)
    # Training may look at several images otherwise than the class does that is compared.
    model_type = read_json(hf_folder / CONFIG_FILE)["model_type"]
    mapping |= {"multi_image_views": VIEWS_OF_CLASS[model_type]}
    settings = image_settings(run_config(mapping, str(root / "model.yaml")))
    asked = cases(mapping, settings, photographs)
    ours = megatron_logits(root, mapping, load_state(root, mapping, iteration, base), asked)
    theirs = hf_logits(hf_folder, settings, asked)
    columns = mapping["vocab_size"]  # a token that transformers needs may be theirs alone
    differences = {
        name: float((ours[name] - theirs[name][:, :columns]).abs().max()) for name in asked
    }
    for name, difference in differences.items():
        if not difference <= LOGITS_THRESHOLD:
            raise ValueError(
                f"{root} and {hf_folder}: logits differ by up to {difference:.2e} ({name}), "
                f"more than {LOGITS_THRESHOLD:.0e}"
            )
    return differences

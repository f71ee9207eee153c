"""A vision tower for views of another size: its position embedding is interpolated."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_llava.config.towers import HF_TOWERS
from megatron_llava.convert.combined_reader import HFSource
from megatron_llava.convert.families import VISION
from megatron_llava.convert.hf_config import read_json
from megatron_llava.convert.hf_folder import CONFIG_FILE, change_processors, replace_present
from megatron_llava.convert.rules import Shape

POSITIONS = VISION + "embeddings.position_embedding.weight"
_BUFFER = VISION + "embeddings.position_ids"


def resized_positions(table: Tensor, side: int) -> Tensor:
    """A position embedding [u^2 (+ 1), D] for a grid of `side` patches, in its dtype.

    Patches are resized as `interpolate_pos_encoding` of transformers does: bicubic, align_corners
    False; here at least in float32. A row in front, of a class token, is kept.
    """
    old = math.isqrt(len(table))
    front, patches = table[: len(table) - old**2], table[len(table) - old**2 :]
    assert len(front) <= 1, table.shape
    if old == side:
        return table
    precision = torch.promote_types(table.dtype, torch.float32)
    grid = patches.to(precision).reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        grid, size=(side, side), mode="bicubic", align_corners=False
    )
    rows = resized.permute(0, 2, 3, 1).reshape(side**2, -1)
    return torch.cat((front, rows.to(table.dtype)))


class ResizedTower:
    """An HFSource whose tower has positions for views of another size.

    Args:
        patches: along each side of such a view.
    """

    def __init__(self, source: HFSource, patches: int) -> None:
        self._source, self._patches = source, patches
        self.folder: Path = source.folder

    def names(self) -> list[str]:
        return [name for name in self._source.names() if name != _BUFFER]

    def __contains__(self, name: object) -> bool:
        return name != _BUFFER and name in self._source

    def source(self, name: str) -> str:
        return self._source.source(name)

    def shape(self, name: str) -> Shape:
        shape = self._source.shape(name)
        if name != POSITIONS:
            return shape
        return self._patches**2 + shape[0] - math.isqrt(shape[0]) ** 2, shape[1]

    def dtype(self, name: str) -> torch.dtype:
        return self._source.dtype(name)

    def tensor(self, name: str) -> Tensor:
        tensor = self._source.tensor(name)
        return resized_positions(tensor, self._patches) if name == POSITIONS else tensor

    def fingerprint(self) -> list[list[str | int]]:
        return [*self._source.fingerprint(), ["patches", self._patches]]


def with_image_size(mapping: dict[str, Any], size: int) -> dict[str, Any]:
    """The mapping of a folder of transformers whose views have `size` pixels; grids keep their
    tiles.

    Raises:
        ValueError: a view has no whole patch.
    """
    patch, old = mapping["vision_patch_size"], mapping["vision_image_size"]
    if mapping["vision_model_type"] in HF_TOWERS:
        raise ValueError(
            f"--vision-image-size {size}: of {mapping['vision_model_type']} towers the positions "
            f"are not interpolated; it has views of {old} pixels"
        )
    if size < patch:
        raise ValueError(f"--vision-image-size {size}: a patch of the tower has {patch} pixels")
    changed = mapping | {"vision_image_size": size}
    if "image_grid_pinpoints" in mapping:
        grids = mapping["image_grid_pinpoints"]
        changed["image_grid_pinpoints"] = [[side // old * size for side in pair] for pair in grids]
    return changed


def state_image_size(folder: Path, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Bring config.json and the processors of a folder of transformers from one mapping to the
    other."""
    size, patch = after["vision_image_size"], after["vision_patch_size"]
    tokens = (size // patch) ** 2
    config = read_json(folder / CONFIG_FILE)
    config["vision_config"] = (config.get("vision_config") or {}) | {"image_size": size}
    changes = {"image_seq_length": tokens}
    changes |= {key: after[key] for key in ("image_grid_pinpoints",) if key in after}
    text = json.dumps(config | changes, indent=2, sort_keys=True)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    more_tokens = tokens - (before["vision_image_size"] // patch) ** 2

    def change(section: dict[str, Any]) -> None:
        for key in ("size", "crop_size"):
            sides = section.get(key)
            if isinstance(sides, dict):
                section[key] = {name: side and size for name, side in sides.items()}
            elif sides is not None:
                section[key] = size
        if section.get("num_image_tokens") is not None:
            section["num_image_tokens"] += more_tokens
        replace_present(section, changes)

    change_processors(folder, change)

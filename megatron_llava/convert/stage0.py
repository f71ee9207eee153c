"""A LLaVA starting checkpoint out of a language model, a vision tower and a fresh projector.

The projector is drawn as torch draws linears, as the original code does; the newline as the
original code draws it. Everything else keeps its bits.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from megatron_llava.config.projector import parse_projector_type
from megatron_llava.config.towers import TOWERS, kind_of
from megatron_llava.convert.checkpoint import import_source
from megatron_llava.convert.combined_reader import CombinedReader, HFSource
from megatron_llava.convert.convert import check_hf, common_dtype
from megatron_llava.convert.drawn_projector import DrawnTensors
from megatron_llava.convert.families import EMBEDDING, VISION
from megatron_llava.convert.grown_vocabulary import GrownReader
from megatron_llava.convert.hf_config import (
    PROJECTOR_OF_ACTIVATION,
    read_json,
    text_fields,
    vision_fields,
)
from megatron_llava.convert.hf_files import write_hf_files
from megatron_llava.convert.hf_folder import (
    CONFIG_FILE,
    DTYPE_NAMES,
    check_tensors,
    copy_side_files,
    output_weight_fields,
)
from megatron_llava.convert.hf_tower_rules import written_names
from megatron_llava.convert.hf_writer import MAX_SHARD_BYTES, write_hf
from megatron_llava.convert.image_token import VIDEO_PLACEHOLDER, add_tokens, rows_for
from megatron_llava.convert.llava_config import MODEL_TYPE, llava_config
from megatron_llava.convert.output_folder import check_room, pending_folder, refuse_existing
from megatron_llava.convert.progress import Progress
from megatron_llava.convert.resized_tower import ResizedTower, with_image_size
from megatron_llava.convert.tensor_source import CastTensors, stored_bytes
from megatron_llava.convert.tower_folder import TowerFolder
from megatron_llava.convert.weights_folder import WeightsFolder
from megatron_llava.text.constants import IMAGE_PLACEHOLDER
from megatron_llava.text.known_templates import get_template


@dataclass(frozen=True, kw_only=True)
class Stage0:
    """What to make.

    Attributes:
        language_model: Hugging Face folder of a Llama, Mistral or Qwen2 model.
        vision_tower: Hugging Face folder of a vision model, of a kind of ``config.towers``.
        model_type: llava, llava_next or llava_onevision.
        projector: LLaVA's name of its type.
        grids: (columns, rows) of tiles that images may have; the class's usual ones where empty.
        max_views: N of anyres_max_N, for llava_onevision.
        seed: of the projector and the newline.
        conversation_template: whose chat template to write; the language model's own where None.
        vision_image_size: side of a view in pixels that the tower is to see; its own where None.
    """

    language_model: Path
    vision_tower: Path
    model_type: str = "llava_next"
    projector: str = "mlp2x_gelu"
    grids: tuple[tuple[int, int], ...] = ()
    max_views: int = 9
    seed: int = 0
    conversation_template: str | None = None
    vision_image_size: int | None = None


USUAL_GRIDS = {
    "llava_next": ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)),
    "llava_onevision": tuple((i, j) for i in range(1, 7) for j in range(1, 7)),
}
_TEXT_PARTS = ("model.embed_tokens.", "model.layers.", "model.norm.")


class TextFolder(WeightsFolder):
    """Tensors of a language model under the hub names of a LLaVA model's."""

    def renamed(self, names: list[str]) -> dict[str, str]:
        unknown = [n for n in names if not n.startswith((*_TEXT_PARTS, "lm_head."))]
        if unknown:
            raise ValueError(
                f"no Llama, Mistral or Qwen2 language model: it has {len(unknown)} tensors such as "
                f"{unknown[0]}"
            )
        return {name: "language_model." + name for name in names}


def stage0_mapping(settings: Stage0, text: TextFolder, tower: TowerFolder) -> dict[str, Any]:
    """The mapping of the model to be made, its vocabulary still the language model's.

    Raises:
        ValueError: one line naming the folder and the setting.
    """
    config = read_json(text.folder / CONFIG_FILE)
    try:
        mapping = text_fields(config, prefix="") | output_weight_fields(config, text)
    except ValueError as error:
        raise ValueError(f"{text.folder}: {error}") from None
    section = tower.config()
    kind = kind_of(section["model_type"])
    assert kind is not None
    # The last state but one, or in other words the state before the last layer.
    top = {
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default" if TOWERS[kind].front_rows else "full",
    }
    mapping |= vision_fields(section, top)
    if settings.vision_image_size is not None:
        mapping = with_image_size(mapping, settings.vision_image_size)
    head = any(name.startswith(VISION + "head.") for name in tower.names())
    mapping |= {"vision_use_head": head, "mm_projector_type": settings.projector}
    parse_projector_type(settings.projector)
    mapping |= _image_fields(settings, mapping, tower.image_processor())
    try:
        seen = _tower_tensors(settings, tower, mapping)
        check_tensors(mapping, CombinedReader(text.folder, [text, seen]), prefix="")
    except ValueError as error:
        raise ValueError(f"{text.folder}, {tower.folder}: {error}") from None
    return mapping


def _tower_tensors(settings: Stage0, tower: TowerFolder, mapping: dict[str, Any]) -> HFSource:
    """The tower's tensors, for views of the size that is asked for."""
    if settings.vision_image_size is None:
        return tower
    return ResizedTower(tower, settings.vision_image_size // mapping["vision_patch_size"])


def _image_fields(
    settings: Stage0, mapping: dict[str, Any], processor: dict[str, Any]
) -> dict[str, Any]:
    kind, side = TOWERS[mapping["vision_model_type"]], mapping["vision_image_size"]
    mean, std = kind.image_mean_std
    fields: dict[str, Any] = {
        "hf_model_type": settings.model_type,
        "unpad_round": "hf",
        "pinpoint_order": "hw",
        "image_resize_mode": kind.image_resize_mode,
        "image_mean": list(processor.get("image_mean") or mean),
        "image_std": list(processor.get("image_std") or std),
    }
    if settings.model_type == "llava":
        return fields | {
            "image_aspect_ratio": "pad",
            "mm_patch_merge_type": "flat",
            "multi_image_views": "as_single",
            "image_newline": False,
        }
    onevision = settings.model_type == "llava_onevision"
    grids = settings.grids or USUAL_GRIDS[settings.model_type]
    return fields | {
        "image_aspect_ratio": f"anyres_max_{settings.max_views}" if onevision else "anyres",
        "image_grid_pinpoints": [[rows * side, columns * side] for columns, rows in grids],
        "mm_patch_merge_type": "spatial_unpad",
        "multi_image_views": "one_padded" if onevision else "as_single",
        "image_newline": True,
    }


def merge_to_megatron(
    settings: Stage0,
    root: str | Path,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the starting checkpoint as the root of a Megatron checkpoint; errors as `merge_to_hf`.

    With a projector that no class of transformers has, it is a model of the original code.
    """
    root = Path(root)
    refuse_existing(root)
    with _prepared(settings, dtype) as (reader, mapping, files, wanted):
        copy = partial(shutil.copytree, files, dirs_exist_ok=True)
        import_source(reader, mapping, root, copy, progress, wanted)


def merge_to_hf(
    settings: Stage0,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write the starting checkpoint as a Hugging Face folder.

    dtype: of all tensors; the language model's where not given, which must be the tower's then.
    ValueError, for the user, where the parts do not fit together, are damaged or unsupported, where
    `folder` exists, and where the disk is too small.
    """
    folder = Path(folder)
    refuse_existing(folder)
    with _prepared(settings, dtype) as (reader, mapping, files, wanted):
        if mapping["image_token_index"] is None:
            raise ValueError(
                f"--projector {settings.projector}: the classes of transformers have "
                f"{' or '.join(PROJECTOR_OF_ACTIVATION.values())} only; give --to megatron"
            )
        source = CastTensors(reader, wanted)
        check_room(folder, stored_bytes(source))
        task = {"to": "hf", "from": reader.fingerprint(), "dtype": str(wanted)}
        with pending_folder(folder, task | {"shard": max_shard_bytes}) as (pending, journal):
            shutil.copytree(files, pending, dirs_exist_ok=True)
            named = written_names(source, mapping)
            write_hf(pending, named, journal, max_shard_bytes, progress)


@contextmanager
def _prepared(
    settings: Stage0, dtype: torch.dtype | None
) -> Iterator[tuple[HFSource, dict[str, Any], Path, torch.dtype]]:
    """The tensors, the mapping, a folder with the other files, and the dtype; all checked."""
    if settings.conversation_template is not None:
        get_template(settings.conversation_template)
    text, tower = TextFolder(settings.language_model), TowerFolder(settings.vision_tower)
    mapping = stage0_mapping(settings, text, tower)
    drawn = DrawnTensors(mapping, dtype or text.dtype(EMBEDDING), settings.seed)
    seen = _tower_tensors(settings, tower, mapping)
    reader = CombinedReader(text.folder, [text, seen, drawn])
    found = common_dtype(reader, mapping, any_of_them=dtype is not None)
    check_hf(reader, mapping)
    with TemporaryDirectory(prefix="stage0-") as name:
        files = Path(name)
        _write_files(settings, mapping, dtype or found, files)
        yield GrownReader(reader, mapping["vocab_size"]), mapping, files, dtype or found


def _write_files(
    settings: Stage0, mapping: dict[str, Any], dtype: torch.dtype, folder: Path
) -> None:
    """Tokenizer with the new tokens, configuration, processor; the mapping learns of the tokens."""
    copy_side_files(settings.language_model, folder)
    base = read_json(folder / CONFIG_FILE)
    (folder / CONFIG_FILE).unlink()
    if settings.conversation_template is not None:
        template = get_template(settings.conversation_template).chat_template_jinja()
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    if settings.projector not in PROJECTOR_OF_ACTIVATION.values():
        kind = mapping["language_model_type"]
        mapping |= {"hf_model_type": MODEL_TYPE[kind], "image_token_index": None}
        base["model_type"] = MODEL_TYPE[kind]
        config = llava_config(mapping, base, DTYPE_NAMES[dtype])
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
        return
    onevision = settings.model_type == "llava_onevision"
    tokens = (IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER) if onevision else (IMAGE_PLACEHOLDER,)
    ids = add_tokens(folder, tokens)
    mapping["image_token_index"] = ids[IMAGE_PLACEHOLDER]
    if onevision:
        mapping["video_token_index"] = ids[VIDEO_PLACEHOLDER]
    mapping["vocab_size"] = rows_for(mapping["vocab_size"], max(ids.values()))
    write_hf_files(folder, mapping, DTYPE_NAMES[dtype])

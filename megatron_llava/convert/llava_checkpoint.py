"""Folders of the original LLaVA code: to the root of a Megatron checkpoint, and from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from megatron_llava.config.towers import HF_TOWERS
from megatron_llava.convert.checkpoint import hf_tensors, import_source
from megatron_llava.convert.combined_reader import CombinedReader, HFSource
from megatron_llava.convert.export_config import FIXED_IN_LLAVA
from megatron_llava.convert.families import PROJECTOR, VISION
from megatron_llava.convert.hf_config import read_json
from megatron_llava.convert.hf_folder import (
    CONFIG_FILE,
    DTYPE_NAMES,
    check_tensors,
    copy_side_files,
    output_weight_fields,
)
from megatron_llava.convert.hf_reader import ORIGINAL, HFReader
from megatron_llava.convert.hf_writer import MAX_SHARD_BYTES, write_hf
from megatron_llava.convert.llava_config import llava_config, mapping_from_llava, tower_config
from megatron_llava.convert.llava_names import original_name
from megatron_llava.convert.mm_projector import FILE, ProjectorFile, write_mm_projector
from megatron_llava.convert.output_folder import check_room, pending_folder, refuse_existing
from megatron_llava.convert.progress import Progress
from megatron_llava.convert.root_files import HF_FOLDER, read_root_mapping
from megatron_llava.convert.tensor_source import RenamedTensors, stored_bytes
from megatron_llava.convert.tower_folder import TowerFolder
from megatron_llava.convert.whole_model import as_path, open_whole


def import_llava(
    folder: str | Path,
    root: str | Path,
    *,
    vision_tower: str | Path | None = None,
    mm_projector: str | Path | None = None,
    progress: Progress | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Convert a folder of the original LLaVA code to the root of a Megatron checkpoint.

    Args:
        vision_tower: Hugging Face folder of the tower, for its configuration; its weights are
            taken where the LLaVA folder has none.
        mm_projector: an `mm_projector.bin` whose projector is taken instead of the folder's.

    Raises:
        ValueError: for the user, as `import_hf`.
    """
    folder, root = Path(folder), Path(root)
    refuse_existing(root)
    reader, tower = open_llava(folder, vision_tower, mm_projector)
    mapping = llava_mapping(folder, reader, tower)

    def copy_files(target: Path) -> None:
        copy_side_files(folder, target)

    import_source(reader, mapping, root, copy_files, progress, dtype)


def open_llava(
    folder: Path, vision_tower: str | Path | None, mm_projector: str | Path | None
) -> tuple[HFSource, TowerFolder | None]:
    """The tensors of a folder of the original code, completed by a tower and a projector."""
    main = HFReader(folder)
    if main.layout != ORIGINAL:
        raise ValueError(f"{folder}: has tensor names of transformers: give --from hf")
    sources: list[HFSource] = [main]
    if mm_projector is not None:
        sources.insert(0, ProjectorFile(Path(mm_projector)))
    tower = None if vision_tower is None else TowerFolder(vision_tower)
    if not any(name.startswith(VISION) for name in main.names()):
        if tower is None:
            raise ValueError(
                f"{folder}: has no vision tower (model.vision_tower.*): give --vision-tower FOLDER"
            )
        sources.append(tower)
    return CombinedReader(folder, sources), tower


def llava_mapping(folder: Path, reader: HFSource, tower: TowerFolder | None) -> dict[str, Any]:
    """The mapping of a folder of the original code, checked against its tensors."""
    config = read_json(folder / CONFIG_FILE)
    try:
        section = tower_config(config) if tower is None else tower.config()
        processor = {} if tower is None else tower.image_processor()
        mapping = mapping_from_llava(config, section, reader, processor)
        mapping |= output_weight_fields(config, reader)
        check_tensors(mapping, reader, prefix="")
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return mapping


def export_llava(
    root: str | Path,
    folder: str | Path,
    iteration: int | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    *,
    without_vision_tower: bool = False,
    progress: Progress | None = None,
    base: str | Path | None = None,
) -> None:
    """Convert a Megatron checkpoint to a folder of the original LLaVA code.

    Args:
        without_vision_tower: leave the tower out, as the original code does where it was frozen.
        base: the weights that adapters in `root` are added to, see `open_whole`.

    Raises:
        ValueError: for the user, as `export_hf`.
    """
    root, folder = Path(root), Path(folder)
    refuse_existing(folder)
    mapping = read_root_mapping(root)
    _check_images(mapping)
    if mapping["vision_model_type"] in HF_TOWERS:
        raise ValueError(
            f"model.yaml: vision_model_type is {mapping['vision_model_type']}, of which the "
            "original LLaVA code has no tower; give --to hf"
        )
    checkpoint = open_whole(root, mapping, iteration, as_path(base))
    hub = hf_tensors(checkpoint, root, mapping, dtype)
    names = {original_name(name): name for name in hub.names()}
    if without_vision_tower:
        names = {
            name: hub_name for name, hub_name in names.items() if not hub_name.startswith(VISION)
        }
    source = RenamedTensors(hub, names)
    check_room(folder, stored_bytes(source))
    config = read_json(root / HF_FOLDER / CONFIG_FILE)
    task = {
        "to": "llava",
        "from": checkpoint.fingerprint(),
        "dtype": str(dtype),
        "shard": max_shard_bytes,
        "without_vision_tower": without_vision_tower,
    }
    with pending_folder(folder, task) as (pending, journal):
        copy_side_files(root / HF_FOLDER, pending)
        written = DTYPE_NAMES[source.dtype("model.embed_tokens.weight")]
        text = json.dumps(llava_config(mapping, config, written), indent=2, sort_keys=True)
        (pending / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        write_hf(pending, source, journal, max_shard_bytes, progress)


def export_mm_projector(
    root: str | Path,
    path: str | Path,
    iteration: int | None = None,
    dtype: torch.dtype | None = None,
    base: str | Path | None = None,
) -> None:
    """Write the projector of a Megatron checkpoint as the original code's `mm_projector.bin`.

    path: the file; a folder gets one of that name. base: as of `export_llava`. ValueError where the
    file exists.
    """
    root, path = Path(root), Path(path)
    if path.suffix != ".bin":
        path = path / FILE
    if path.exists():
        raise ValueError(f"{path}: already exists; give a new name or remove it first")
    mapping = read_root_mapping(root)
    for field in ("cross_image_attention", "temporal_encoder_layers"):
        if mapping.get(field):
            raise ValueError(
                f"model.yaml: {field} is {mapping[field]}, which a projector's file has no place "
                "for"
            )
    checkpoint = open_whole(root, mapping, iteration, as_path(base))
    source = hf_tensors(checkpoint, root, mapping, dtype)
    names = [name for name in source.names() if name.startswith(PROJECTOR)]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    write_mm_projector(partial, ((name, source.tensor(name)) for name in names))
    partial.replace(path)


def _check_images(mapping: dict[str, Any]) -> None:
    for field, value in FIXED_IN_LLAVA.items():
        if mapping.get(field) != value:
            raise ValueError(
                f"model.yaml: {field} is {mapping.get(field)}, which the original LLaVA code "
                f"cannot compute; it has {value} only"
            )

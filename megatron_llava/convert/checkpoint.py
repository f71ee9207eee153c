"""Whole folders: a Hugging Face folder to the root of a Megatron checkpoint, and back.

A few tensors are in memory at a time. Megatron-core is imported inside the functions:
`single_process` must set the platform up first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_llava.convert.combined_reader import HFSource
from megatron_llava.convert.convert import (
    HFTensors,
    MegatronTensors,
    check_hf,
    common_dtype,
    passthrough_of,
)
from megatron_llava.convert.export_config import write_hf_side_files, write_new_hf_files
from megatron_llava.convert.families import EMBEDDING
from megatron_llava.convert.grown_vocabulary import GrownTensors
from megatron_llava.convert.hf_folder import copy_side_files, read_mapping
from megatron_llava.convert.hf_reader import ORIGINAL, HFReader
from megatron_llava.convert.hf_tower_rules import written_names
from megatron_llava.convert.hf_writer import MAX_SHARD_BYTES, write_hf
from megatron_llava.convert.megatron_writer import PART_BYTES, write_megatron
from megatron_llava.convert.output_folder import check_room, pending_folder, refuse_existing
from megatron_llava.convert.progress import Progress
from megatron_llava.convert.resized_tower import (
    ResizedTower,
    state_image_size,
    with_image_size,
)
from megatron_llava.convert.root_files import (
    HF_FOLDER,
    read_passthrough,
    read_root_mapping,
    write_root_files,
)
from megatron_llava.convert.single_process import single_process
from megatron_llava.convert.tensor_source import TensorSource, stored_bytes
from megatron_llava.convert.whole_model import as_path, open_whole
from megatron_llava.parallel.checkpoint_directory import RELEASE, TRACKER, iteration_directory


def import_hf(
    hf_folder: str | Path,
    root: str | Path,
    progress: Progress | None = None,
    dtype: torch.dtype | None = None,
    part_bytes: int = PART_BYTES,
    image_size: int | None = None,
) -> None:
    """Convert a Hugging Face LLaVA folder to the root of a Megatron checkpoint (`release`).

    Nothing appears under `root` until it is complete; an interrupted call is taken up again by the
    next one. dtype: of the parameters; the folder's where not given. ValueError, for the user,
    where the folder is damaged, unsupported or contradicts itself, where `root` exists, and where
    the disk is too small. part_bytes: of a step that an interrupted call need not repeat.
    image_size: side of a view in pixels that the tower is to see; its own where not given.
    """
    hf_folder, root = Path(hf_folder), Path(root)
    refuse_existing(root)
    with HFReader(hf_folder) as reader:
        if reader.layout == ORIGINAL:
            raise ValueError(
                f"{hf_folder}: has the tensor names of the original LLaVA code: give --from llava"
            )
        mapping = read_mapping(hf_folder, reader)
        source, mapping, copy_files = _of_size(reader, mapping, hf_folder, image_size)
        import_source(source, mapping, root, copy_files, progress, dtype, part_bytes)


def _of_size(
    reader: HFReader, mapping: dict[str, Any], folder: Path, image_size: int | None
) -> tuple[HFSource, dict[str, Any], Callable[[Path], object]]:
    """Tensors, mapping and what copies the other files, for views of a size."""
    copy_files = partial(copy_side_files, folder)
    if image_size is None:
        return reader, mapping, copy_files
    resized = with_image_size(mapping, image_size)
    source = ResizedTower(reader, image_size // mapping["vision_patch_size"])

    def copy_and_state(target: Path) -> None:
        copy_files(target)
        state_image_size(target, mapping, resized)

    return source, resized, copy_and_state


def import_source(
    reader: HFSource,
    mapping: dict[str, Any],
    root: Path,
    write_files: Callable[[Path], object],
    progress: Progress | None = None,
    dtype: torch.dtype | None = None,
    part_bytes: int = PART_BYTES,
) -> None:
    """Write the root of a Megatron checkpoint from tensors under hub names; errors as import_hf.

    write_files: writes configuration and tokenizer into the folder that it is given. part_bytes: of
    a step that an interrupted call need not repeat.
    """
    stored = common_dtype(reader, mapping, any_of_them=dtype is not None)
    check_hf(reader, mapping)
    source = MegatronTensors(reader, mapping, dtype)
    passthrough = passthrough_of(reader, mapping)
    check_room(root, stored_bytes(source) + sum(t.nbytes for t in passthrough.values()))
    task = {"to": "megatron", "from": reader.fingerprint(), "dtype": str(dtype), "part": part_bytes}
    with single_process(), pending_folder(root, task) as (pending, journal):
        (pending / HF_FOLDER).mkdir(exist_ok=True)
        write_files(pending / HF_FOLDER)
        write_root_files(pending, mapping, passthrough, dtype or stored)
        release = iteration_directory(pending, RELEASE)
        write_megatron(release, mapping, source, journal, progress, part_bytes)
        (pending / TRACKER).write_text(RELEASE)


def export_hf(
    root: str | Path,
    hf_folder: str | Path,
    iteration: int | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
    base: str | Path | None = None,
) -> None:
    """Convert a Megatron checkpoint of any layout to a Hugging Face folder (hub name layout).

    A model that came from the original code is given an `<image>` token and the class of
    transformers that computes its images. iteration: the one to export; the latest where not given.
    dtype: of the written parameters; the checkpoint's where not given. base: the weights that
    adapters in `root` are added to, see `open_whole`. ValueError, for the user, where something is
    missing or does not fit, where `hf_folder` exists and is not empty, and where
    the disk is too small.
    """
    root, hf_folder = Path(root), Path(hf_folder)
    refuse_existing(hf_folder)
    mapping = read_root_mapping(root)
    checkpoint = open_whole(root, mapping, iteration, as_path(base))
    source: TensorSource = hf_tensors(checkpoint, root, mapping, dtype)
    written = source.dtype(EMBEDDING)
    check_room(hf_folder, stored_bytes(source))
    task = {"to": "hf", "from": checkpoint.fingerprint(), "dtype": str(dtype)}
    with pending_folder(hf_folder, task | {"shard": max_shard_bytes}) as (pending, journal):
        if mapping["image_token_index"] is None:
            rows = write_new_hf_files(root / HF_FOLDER, pending, mapping, written)
            source = GrownTensors(source, rows)
        else:
            write_hf_side_files(root / HF_FOLDER, pending, mapping, written)
        write_hf(pending, written_names(source, mapping), journal, max_shard_bytes, progress)


def hf_tensors(
    checkpoint: TensorSource, root: Path, mapping: dict[str, Any], dtype: torch.dtype | None
) -> HFTensors:
    """The Hugging Face tensors of a Megatron checkpoint."""
    return HFTensors(checkpoint, mapping, read_passthrough(root), dtype)


def load_state(
    root: Path,
    mapping: dict[str, Any],
    iteration: int | None = None,
    base: str | Path | None = None,
) -> dict[str, Tensor]:
    """All parameters of one checkpoint in its own dtype, whatever layout wrote it.

    base: as of `export_hf`.
    """
    reader = open_whole(root, mapping, iteration, as_path(base))
    return {name: reader.tensor(name) for name in reader.names()}

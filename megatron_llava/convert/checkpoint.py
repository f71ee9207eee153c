"""Whole folders: a Hugging Face folder to the root of a Megatron checkpoint, and back.

Megatron-core is imported inside the functions: `single_process` must set the platform up first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_llava.convert.convert import (
    check_shapes,
    common_dtype,
    hf_state_from_megatron,
    megatron_shapes,
    megatron_state_from_hf,
)
from megatron_llava.convert.export_config import write_hf_side_files
from megatron_llava.convert.hf_folder import copy_side_files, read_mapping
from megatron_llava.convert.hf_reader import HFReader
from megatron_llava.convert.hf_writer import MAX_SHARD_BYTES, HFWriter
from megatron_llava.convert.output_folder import pending_folder, refuse_existing
from megatron_llava.convert.progress import Progress
from megatron_llava.convert.root_files import (
    HF_FOLDER,
    read_passthrough,
    read_root_mapping,
    run_config,
    write_root_files,
)
from megatron_llava.convert.single_process import single_process
from megatron_llava.parallel.checkpoint_directory import (
    RELEASE,
    find_checkpoint,
    iteration_directory,
    latest_iteration,
)

if TYPE_CHECKING:
    from megatron_llava.models.llava import LlavaModel

NAME_OF_DTYPE = "vision_model.conv1.weight"


def import_hf(hf_folder: str | Path, root: str | Path, progress: Progress | None = None) -> None:
    """Convert a Hugging Face LLaVA-NeXT folder to the root of a Megatron checkpoint (`release`).

    Nothing appears under `root` until it is complete. ValueError, for the user, where the folder
    is damaged, unsupported or contradicts itself, and where `root` exists.
    """
    hf_folder, root = Path(hf_folder), Path(root)
    refuse_existing(root)
    with HFReader(hf_folder) as reader:
        mapping = read_mapping(hf_folder, reader)
        dtype = common_dtype(reader, mapping)
        state, passthrough = megatron_state_from_hf(reader, mapping, progress)
        with single_process(), pending_folder(root) as pending:
            copy_side_files(hf_folder, pending / HF_FOLDER)
            write_root_files(pending, mapping, passthrough, dtype)
            save_release(pending, mapping, state)


def export_hf(
    root: str | Path,
    hf_folder: str | Path,
    iteration: int | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Convert a Megatron checkpoint to a Hugging Face folder in the hub's name layout.

    iteration: the one to export; the latest where not given. dtype: of the written parameters; the
    checkpoint's where not given. ValueError, for the user, where something is missing or does not
    fit, and where `hf_folder` exists and is not empty.
    """
    root, hf_folder = Path(root), Path(hf_folder)
    refuse_existing(hf_folder)
    mapping = read_root_mapping(root)
    passthrough = read_passthrough(root)
    state = load_state(root, mapping, iteration)
    written = dtype or next(iter(state.values())).dtype
    with pending_folder(hf_folder) as pending:
        write_hf_side_files(root / HF_FOLDER, pending, mapping, written)
        writer = HFWriter(pending, max_shard_bytes)
        for name, tensor in hf_state_from_megatron(state, mapping, passthrough):
            converted = tensor.to(written) if tensor.is_floating_point() else tensor
            writer.add(name, converted)
            if progress is not None:
                progress.add(name, converted)
        writer.close()


def build_for_compute(mapping: dict[str, Any], dtype: torch.dtype) -> LlavaModel:
    """The whole model on one rank, with random weights; inside `single_process` only."""
    from megatron_llava.models.build import build_llava_model

    return build_llava_model(run_config(mapping, "model.yaml")).to(dtype)


def build_for_storage(mapping: dict[str, Any], dtype: torch.dtype) -> LlavaModel:
    """The same on the meta device: names and shapes that cost no memory."""
    with torch.device("meta"):
        model = build_for_compute(mapping, dtype)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    check_shapes("the built Megatron model", megatron_shapes(mapping), shapes)
    return model


def save_release(root: Path, mapping: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Save converted parameters as the `release` checkpoint of `root`; inside `single_process`."""
    from megatron_llava.parallel.checkpoint_io import save_sharded

    model = build_for_storage(mapping, next(iter(state.values())).dtype)
    model.load_state_dict(state, strict=True, assign=True)
    save_sharded(root, RELEASE, {"model": model.sharded_state_dict()})


def load_state(
    root: Path, mapping: dict[str, Any], iteration: int | None = None
) -> dict[str, Tensor]:
    """Parameters of one checkpoint in its own dtype, whatever layout wrote it."""
    with single_process():
        from megatron_llava.parallel.checkpoint_io import load_sharded

        chosen = latest_iteration(root) if iteration is None else iteration
        if chosen is None:
            raise ValueError(f"{root}: no checkpoint there; give the folder that --save named")
        model = build_for_storage(mapping, _stored_dtype(root, chosen))
        model = model.to_empty(device="cpu")
        loaded = load_sharded(root, chosen, {"model": model.sharded_state_dict()}, strict=False)
        model.load_state_dict(loaded["model"], strict=True)
        return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _stored_dtype(root: Path, iteration: int | str) -> torch.dtype:
    """The dtype of one tensor of the checkpoint, which is that of all parameters."""
    from megatron.core import dist_checkpointing

    directory = find_checkpoint(root, iteration)
    if directory is None:
        raise ValueError(f"{iteration_directory(root, iteration)}: no such checkpoint")
    metadata = dist_checkpointing.load_tensors_metadata(str(directory))
    if NAME_OF_DTYPE not in metadata:
        raise ValueError(f"{directory}: holds no {NAME_OF_DTYPE}; is it a LLaVA checkpoint?")
    dtype: torch.dtype = metadata[NAME_OF_DTYPE].dtype
    return dtype

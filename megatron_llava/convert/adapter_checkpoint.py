"""Checkpoints of adapters: read, written from other tensors, and merged into whole models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from megatron_llava.convert.megatron_writer import write_megatron
from megatron_llava.convert.output_folder import check_room, pending_folder, refuse_existing
from megatron_llava.convert.progress import Progress
from megatron_llava.convert.root_files import (
    HF_FOLDER,
    read_passthrough,
    read_root_mapping,
    write_root_files,
)
from megatron_llava.convert.single_process import single_process
from megatron_llava.convert.tensor_source import TensorSource, stored_bytes
from megatron_llava.convert.whole_model import open_whole
from megatron_llava.parallel.adapter_record import (
    AdapterRecord,
)
from megatron_llava.parallel.checkpoint_directory import (
    ADAPTER_JSON,
    RELEASE,
    TRACKER,
    is_hf_folder,
    iteration_directory,
)


def write_adapters(
    root: Path,
    base_root: Path,
    mapping: dict[str, Any],
    source: TensorSource,
    record: AdapterRecord,
    progress: Progress | None = None,
) -> None:
    """Write a root (`release`) of adapters and what is beside them, for training to start from.

    Args:
        base_root: the weights that they adapt, whose other files travel along.
        source: Megatron parameters: factors, projector, newline.
    """
    check_room(root, stored_bytes(source))
    task = {"to": "adapters", "record": record.text()}
    with single_process(), pending_folder(root, task) as (pending, journal):
        _write_beside(pending, base_root, mapping, source)
        (pending / ADAPTER_JSON).write_text(record.text(), encoding="utf-8")
        release = iteration_directory(pending, RELEASE)
        write_megatron(release, mapping, source, journal, progress, lora=record.lora)
        (pending / TRACKER).write_text(RELEASE)


def merge_adapters(
    root: Path,
    base_root: Path,
    merged_root: Path,
    iteration: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Add adapters to the weights that they stand beside: the root of a whole model (`release`).

    Every weight becomes W + alpha / rank * B A, computed in float32 and rounded once to the dtype
    of W; the projector, the newline and a tower that was trained are those of the run.

    Args:
        root: the folder of the adapters.
        base_root: of the weights that they were trained beside, or their Hugging Face folder.
        merged_root: to be written; must not exist.
        iteration: which of the adapters' checkpoints; the latest where None.

    Raises:
        ValueError: one line: a folder holds something else, or tensors do not fit.
    """
    refuse_existing(merged_root)
    mapping = read_root_mapping(root)
    source = open_whole(root, mapping, iteration, base_root)
    check_room(merged_root, stored_bytes(source))
    task = {"to": "merged", "from": source.fingerprint()}
    # What a run from a Hugging Face folder has beside its checkpoints was converted from there.
    beside = root if is_hf_folder(base_root) else base_root
    with single_process(), pending_folder(merged_root, task) as (pending, journal):
        _write_beside(pending, beside, mapping, source)
        write_megatron(iteration_directory(pending, RELEASE), mapping, source, journal, progress)
        (pending / TRACKER).write_text(RELEASE)


def _write_beside(
    root: Path, base_root: Path, mapping: dict[str, Any], source: TensorSource
) -> None:
    """The files of a root beside its checkpoints."""
    shutil.copytree(base_root / HF_FOLDER, root / HF_FOLDER, dirs_exist_ok=True)
    write_root_files(root, mapping, read_passthrough(base_root), source.dtype(source.names()[0]))

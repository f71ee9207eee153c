"""Checkpoints of adapters to folders of PEFT, and back.

adapter_config.json         rank, alpha, and a pattern of the language model's linears
adapter_model.safetensors   lora_A and lora_B of each; the projector, as PEFT saves modules
image_newline.safetensors   the newline, which no module of PEFT's can be: `image_newline`
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_llava.convert.adapter_checkpoint import write_adapters
from megatron_llava.convert.adapter_rules import TOWER, adapter_rules
from megatron_llava.convert.convert import check_shapes
from megatron_llava.convert.families import projector_rules
from megatron_llava.convert.megatron_reader import MegatronReader
from megatron_llava.convert.output_folder import pending_folder, refuse_existing
from megatron_llava.convert.peft_names import PROJECTOR, peft_name, target_pattern
from megatron_llava.convert.peft_reader import (
    CONFIG_FILE,
    NEWLINE,
    NEWLINE_FILE,
    WEIGHTS_FILE,
    read_peft,
)
from megatron_llava.convert.progress import Progress
from megatron_llava.convert.root_files import read_root_mapping
from megatron_llava.convert.rules import REPLICATED, Copy, Rule
from megatron_llava.convert.tensor_source import InMemory, converted
from megatron_llava.parallel.adapter_record import (
    AdapterRecord,
    digest_of,
    read_record,
    refuse_adapters,
)
from megatron_llava.parallel.checkpoint_directory import CheckpointError


def export_peft(
    root: Path,
    folder: Path,
    iteration: int | None = None,
    dtype: torch.dtype | None = None,
    base_model: str | None = None,
) -> None:
    """Write the adapters of a run as a folder that `peft` loads beside the class of transformers.

    Args:
        root: what --save named.
        folder: to be written; must not exist.
        iteration: which checkpoint; the latest where None.
        dtype: of the tensors; their own where None.
        base_model: name or folder of the Hugging Face model, for PEFT's configuration.

    Raises:
        ValueError: one line: no adapters, or a trained tower, which PEFT's folder has no place for.
    """
    refuse_existing(folder)
    record, mapping = read_record(root), read_root_mapping(root)
    reader = MegatronReader(root, mapping, iteration, record.lora)
    if any(name.startswith(TOWER) for name in reader.names()):
        raise CheckpointError(
            f"{root}: the vision tower was trained beside the adapters, and an adapter folder has "
            "no place for it: make a whole model with tools/lora.py merge"
        )
    tensors: dict[str, Tensor] = {}
    for rule in [*adapter_rules(mapping, record.lora), *_beside(mapping)]:
        made = rule.to_hf(reader.tensor(rule.megatron))
        for name, tensor in zip(rule.hf, made, strict=True):
            tensors[name] = converted(tensor, dtype or tensor.dtype, name).contiguous()
    newline = {name: tensors.pop(name) for name in (NEWLINE,) if name in tensors}
    tensors = {peft_name(name): tensor for name, tensor in tensors.items()}
    with pending_folder(folder, {"to": "peft", "from": reader.fingerprint()}) as (pending, _):
        save_file(tensors, pending / WEIGHTS_FILE, metadata={"format": "pt"})
        if newline:
            save_file(newline, pending / NEWLINE_FILE, metadata={"format": "pt"})
        text = json.dumps(_config(record, base_model), indent=2) + "\n"
        (pending / CONFIG_FILE).write_text(text, encoding="utf-8")


def _beside(mapping: dict[str, Any]) -> list[Rule]:
    """The rows of what a folder may hold beside adapters: the projector and the newline."""
    if not mapping["image_newline"]:
        return projector_rules(mapping)
    shape = (mapping["hidden_size"],)
    return [*projector_rules(mapping), Rule(NEWLINE, (NEWLINE,), Copy(), (shape,), REPLICATED)]


def _config(record: AdapterRecord, base_model: str | None) -> dict[str, Any]:
    """PEFT's configuration; what it does not name has PEFT's default."""
    alpha = int(record.alpha) if record.alpha.is_integer() else record.alpha
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model,
        "r": record.rank,
        "lora_alpha": alpha,
        "lora_dropout": record.dropout,
        "bias": "none",
        "target_modules": target_pattern(record.target_modules),
        "modules_to_save": [PROJECTOR],
        "inference_mode": True,
    }


def import_peft(
    folder: Path, base_root: Path, root: Path, progress: Progress | None = None
) -> None:
    """Make an adapter folder of PEFT the root of a checkpoint (`release`) of adapters.

    What the folder lacks of projector and newline is the base's.

    Args:
        folder: what `peft` saved for a model of transformers, or the original code for its own.
        base_root: the same model, converted.
        root: to be written; must not exist.

    Raises:
        ValueError: one line: the folder is damaged, does not fit, or holds adapters of a kind that
            is not computed here.
    """
    refuse_existing(root)
    refuse_adapters(base_root)
    mapping = read_root_mapping(base_root)
    lora, stored = read_peft(folder)
    base = MegatronReader(base_root, mapping)
    beside = _beside(mapping)
    groups = {_group(name) for name in stored}
    of_folder = [rule for rule in beside if _group(rule.hf[0]) in groups]
    rules = [*adapter_rules(mapping, lora), *of_folder]
    expected = {n: s for rule in rules for n, s in zip(rule.hf, rule.hf_shapes, strict=True)}
    found = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    check_shapes(str(folder), dict(expected), found)
    made = {rule.megatron: rule.to_megatron([stored[n] for n in rule.hf]) for rule in rules}
    made |= {r.megatron: base.tensor(r.megatron) for r in beside if r not in of_folder}
    record = AdapterRecord.of(lora, digest_of(base_root))
    write_adapters(root, base_root, mapping, InMemory(made), record, progress)


def _group(name: str) -> str:
    """Which part of the model a hub name belongs to."""
    return name.split(".")[0]

"""Adapter folders of PEFT, written and read.

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

from megatron_llava.config.lora import TARGET_MODULES, LoraConfig
from megatron_llava.convert.adapter_checkpoint import read_record, write_adapters
from megatron_llava.convert.adapter_rules import TOWER, adapter_rules
from megatron_llava.convert.convert import check_shapes
from megatron_llava.convert.families import projector_rules
from megatron_llava.convert.hf_config import read_json
from megatron_llava.convert.megatron_reader import MegatronReader
from megatron_llava.convert.output_folder import pending_folder, refuse_existing
from megatron_llava.convert.peft_names import PROJECTOR, hub_name_of_peft, peft_name, target_pattern
from megatron_llava.convert.progress import Progress
from megatron_llava.convert.root_files import read_root_mapping
from megatron_llava.convert.rules import Rule
from megatron_llava.convert.tensor_source import InMemory
from megatron_llava.convert.weight_files import SafetensorsFile
from megatron_llava.parallel.adapter_record import AdapterRecord, digest_of, refuse_adapters
from megatron_llava.parallel.checkpoint_directory import CheckpointError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
NEWLINE_FILE = "image_newline.safetensors"
NEWLINE = "image_newline"
# What the products here do not compute, by the values that mean so.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "use_rslora": (None, False),
    "use_qalora": (None, False),
    "lora_bias": (None, False),
    "fan_in_fan_out": (None, False),
    "bias": (None, "none"),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "modules_to_save": (None, [], [PROJECTOR]),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "use_bdlora": (None, False),
    # Others subtract from the weights what the adapters begin with.
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
}


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
    for rule in _rules(mapping, record.lora):
        made = rule.to_hf(reader.tensor(rule.megatron))
        for name, tensor in zip(rule.hf, made, strict=True):
            tensors[peft_name(name)] = tensor.to(dtype or tensor.dtype).contiguous()
    with pending_folder(folder, {"to": "peft", "from": reader.fingerprint()}) as (pending, _):
        save_file(tensors, pending / WEIGHTS_FILE, metadata={"format": "pt"})
        if NEWLINE in reader.names():
            newline = reader.tensor(NEWLINE)
            newline = newline.to(dtype or newline.dtype)
            save_file({NEWLINE: newline}, pending / NEWLINE_FILE, metadata={"format": "pt"})
        text = json.dumps(_config(record, base_model), indent=2) + "\n"
        (pending / CONFIG_FILE).write_text(text, encoding="utf-8")


def _rules(mapping: dict[str, Any], lora: LoraConfig) -> list[Rule]:
    return [*adapter_rules(mapping, lora), *projector_rules(mapping)]


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
        folder: what `peft` saved for a model of transformers.
        base_root: the same model, converted.
        root: to be written; must not exist.

    Raises:
        ValueError: one line: the folder is damaged, does not fit, or holds adapters of a kind that
            is not computed here.
    """
    refuse_existing(root)
    refuse_adapters(base_root)
    mapping = read_root_mapping(base_root)
    stored = _stored(folder)
    lora = _lora(folder, stored)
    base = MegatronReader(base_root, mapping)
    rules = adapter_rules(mapping, lora)
    beside = projector_rules(mapping)
    if any(name.startswith(PROJECTOR) for name in stored):
        rules, beside = rules + beside, []
    newline = [NEWLINE] if mapping["image_newline"] else []
    if NEWLINE in stored and newline:
        width: tuple[int, ...] = (mapping["hidden_size"],)
        check_shapes(str(folder / NEWLINE_FILE), {NEWLINE: width}, {NEWLINE: stored[NEWLINE].shape})
    expected = {n: s for rule in rules for n, s in zip(rule.hf, rule.hf_shapes, strict=True)}
    found = {name: tuple(t.shape) for name, t in stored.items() if name not in newline}
    check_shapes(str(folder / WEIGHTS_FILE), dict(expected), found)
    made = {rule.megatron: rule.to_megatron([stored[n] for n in rule.hf]) for rule in rules}
    made |= {rule.megatron: base.tensor(rule.megatron) for rule in beside}
    made |= {name: stored[name] if name in stored else base.tensor(name) for name in newline}
    record = AdapterRecord.of(lora, digest_of(base_root))
    write_adapters(root, base_root, mapping, InMemory(made), record, progress)


def _stored(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder by hub name."""
    if not (folder / WEIGHTS_FILE).is_file():
        raise ValueError(f"{folder / WEIGHTS_FILE}: no such file")
    file = SafetensorsFile(folder / WEIGHTS_FILE)
    found: dict[str, Tensor] = {}
    for name in file.names():
        try:
            hub = hub_name_of_peft(name)
        except ValueError as error:
            raise ValueError(f"{folder / WEIGHTS_FILE}: {error}") from None
        found[hub] = file.tensor(name)
    if (folder / NEWLINE_FILE).is_file():
        newline = SafetensorsFile(folder / NEWLINE_FILE)
        found |= {name: newline.tensor(name) for name in newline.names()}
    return found


def _lora(folder: Path, stored: dict[str, Tensor]) -> LoraConfig:
    """What the adapters are, from PEFT's configuration and the linears that have any."""
    path = folder / CONFIG_FILE
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type is {config.get('peft_type')!r}; supported: 'LORA'")
    for key, allowed in _UNSUPPORTED.items():
        if config.get(key) not in allowed:
            raise ValueError(f"{path}: {key} is {config[key]!r}, which is not supported")
    rank, alpha, dropout = (config.get(key) for key in ("r", "lora_alpha", "lora_dropout"))
    numbers = (int, float)
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, numbers) or alpha <= 0:
        raise ValueError(f"{path}: r is {rank!r} and lora_alpha {alpha!r}; expected above 0")
    linears = {name.split(".")[-3] for name in stored if ".lora_" in name}
    if not linears:
        raise ValueError(f"{folder / WEIGHTS_FILE}: holds no lora_A and lora_B")
    return LoraConfig(
        lora_rank=rank,
        lora_alpha=float(alpha),
        lora_dropout=float(dropout or 0.0),
        lora_target_modules=tuple(t for t in TARGET_MODULES if t in linears),
    )

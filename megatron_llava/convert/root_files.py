"""What the root of a Megatron checkpoint holds beside the weights.

model.yaml                the model's settings, read by training and inference
passthrough.safetensors   Hugging Face tensors that the Megatron model lacks
hf/                       tokenizer, processor and configuration of the source folder
hf/conversion.json        what only the way back to Hugging Face needs
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_llava.config.model_yaml import MAY_STAY_UNSET, fill_model_from, model_to_yaml
from megatron_llava.config.run import RunConfig, all_fields
from megatron_llava.config.yaml_file import read_yaml_mapping
from megatron_llava.convert.hf_config import read_json

MODEL_FILE = "model.yaml"
PASSTHROUGH_FILE = "passthrough.safetensors"
HF_FOLDER = "hf"
CONVERSION_FILE = "conversion.json"


def run_config(mapping: dict[str, Any], source: str) -> RunConfig:
    """The settings of a model on one CPU process, filled from a mapping.

    The vocabulary is not padded: a checkpoint with the true rows loads at any layout.
    """
    known = {name: value for name, value in mapping.items() if name in all_fields()}
    config = RunConfig().with_values({"device": "cpu"}, "default")
    config = fill_model_from(config, known, source)
    return config.with_values({"make_vocab_size_divisible_by": 1}, "default")


def model_settings(mapping: dict[str, Any], source: str) -> RunConfig:
    """What model.yaml says of a model, beside the defaults of everything else."""
    fields = {name: value for name, value in mapping.items() if name in all_fields()}
    return fill_model_from(RunConfig(), fields, source)


def write_root_files(
    root: Path, mapping: dict[str, Any], passthrough: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """Write model.yaml, hf/conversion.json and the passed-through tensors."""
    settings = model_settings(mapping, MODEL_FILE)
    (root / MODEL_FILE).write_text(model_to_yaml(settings), encoding="utf-8")
    rest = {name: value for name, value in mapping.items() if name not in all_fields()}
    rest["params_dtype"] = str(dtype).removeprefix("torch.")
    (root / HF_FOLDER).mkdir(exist_ok=True)
    text = json.dumps(rest, indent=2, sort_keys=True) + "\n"
    (root / HF_FOLDER / CONVERSION_FILE).write_text(text, encoding="utf-8")
    contiguous = {name: tensor.contiguous() for name, tensor in passthrough.items()}
    save_file(contiguous, root / PASSTHROUGH_FILE, metadata={"format": "pt"})


def read_root_mapping(root: Path) -> dict[str, Any]:
    """The mapping of a Megatron checkpoint; ValueError where a file is missing or unreadable."""
    path = root / MODEL_FILE
    if not path.is_file():
        raise ValueError(f"{path}: no such file; is {root} the root of a converted checkpoint?")
    settings = fill_model_from(RunConfig(), read_yaml_mapping(str(path)), str(path))
    groups = ("language", "vision", "image")
    mapping = {
        name: settings.get(name)
        for name, spec in all_fields().items()
        if spec.group in groups and settings.get(name) is not None
    }
    lacking = [
        name
        for name, spec in all_fields().items()
        if spec.group in groups and settings.get(name) is None and name not in MAY_STAY_UNSET
    ]
    if lacking:
        raise ValueError(f"{path}: lacks {', '.join(lacking)}; it is no whole model.yaml")
    pinpoints = mapping.get("image_grid_pinpoints")
    if isinstance(pinpoints, str) and pinpoints.lstrip().startswith("["):
        mapping["image_grid_pinpoints"] = ast.literal_eval(pinpoints)
    return mapping | read_json(root / HF_FOLDER / CONVERSION_FILE)


def read_passthrough(root: Path) -> dict[str, Tensor]:
    """The passed-through tensors by hub-layout name; ValueError where the file is unreadable."""
    path = root / PASSTHROUGH_FILE
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file; the folder that the weights were trained from has it"
        ) from None
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from None

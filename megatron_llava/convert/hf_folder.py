"""The files of a Hugging Face folder beside its weights: read, copied, checked against tensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from megatron_llava.config.towers import TOWERS
from megatron_llava.convert.combined_reader import HFSource
from megatron_llava.convert.families import EMBEDDING, LM_HEAD, VISION
from megatron_llava.convert.hf_config import mapping_from_hf, read_json

CONFIG_FILE = "config.json"
PROCESSOR_FILE = "processor_config.json"
RATIO_KEY = "vision_aspect_ratio"
SIDE_FILES = (
    CONFIG_FILE,
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*processor*config.json",
    "processor_config.json",
    "chat_template*",
)
_POSITIONS = ("embeddings.position_embedding.weight", "embeddings.position_embeddings")
"""What towers call them: a row for each position, perhaps behind a dimension of one."""
DTYPE_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def copy_side_files(source: Path, target: Path) -> list[str]:
    """Copy tokenizer, processor, template and configuration files; return their names, sorted."""
    target.mkdir(parents=True, exist_ok=True)
    names = sorted(
        path.name
        for path in source.iterdir()
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in SIDE_FILES)
    )
    for name in names:
        if name.endswith(".json"):
            check_json(source / name)
        shutil.copyfile(source / name, target / name)
    return names


def check_json(path: Path) -> None:
    """ValueError where a file that travels is cut short or no JSON."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None


def read_image_processor(folder: Path) -> dict[str, Any]:
    """Settings of the image processor: `preprocessor_config.json`, or nested in the processor's."""
    old, new = folder / "preprocessor_config.json", folder / PROCESSOR_FILE
    if old.exists():
        return read_json(old)
    if new.exists():
        settings = read_json(new).get("image_processor")
        if isinstance(settings, dict):
            return settings
    raise ValueError(f"{folder}: no image processor settings in {old.name} or {new.name}")


def change_processors(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write the processor files of a folder anew, each of their sections changed in place.

    An image processor is the whole of a file, or a section of it.
    """
    for path in sorted(folder.glob("*processor*config.json")):
        content = read_json(path)
        for section in (content, content.get("image_processor")):
            if isinstance(section, dict):
                change(section)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def replace_present(section: dict[str, Any], values: dict[str, Any]) -> None:
    """Set those of some keys that a section of a file has."""
    section |= {key: value for key, value in values.items() if key in section}


def check_processor_ratio(folder: Path, mapping: dict[str, Any]) -> None:
    """ValueError where a OneVision processor would count other tokens than the model makes."""
    path = folder / PROCESSOR_FILE
    if mapping["hf_model_type"] != "llava_onevision" or not path.exists():
        return
    ratio = read_json(path).get(RATIO_KEY, mapping["image_aspect_ratio"])
    if ratio != mapping["image_aspect_ratio"]:
        raise ValueError(
            f"{path.name}: {RATIO_KEY} is {ratio}, but config.json says "
            f"{mapping['image_aspect_ratio']}"
        )


def read_mapping(folder: Path, reader: HFSource) -> dict[str, Any]:
    """The mapping of a Hugging Face folder, checked against its tensors.

    ValueError, one line, for unsupported settings and for tensors that contradict the config.
    """
    config = read_json(folder / CONFIG_FILE)
    try:
        mapping = mapping_from_hf(config, read_image_processor(folder))
        check_processor_ratio(folder, mapping)
        mapping |= output_weight_fields(config, reader)
        check_tensors(mapping, reader)
    except ValueError as error:
        text = str(error)
        raise ValueError(
            text if str(folder) in text.split(": ")[0] else f"{folder}: {text}"
        ) from None
    return mapping


def output_weight_fields(config: dict[str, Any], reader: HFSource) -> dict[str, Any]:
    """Whether the output weight is tied: the flag of config.json and the tensors must agree."""
    if EMBEDDING not in reader:
        raise ValueError(f"tensor {EMBEDDING} is missing")
    top = bool(config.get("tie_word_embeddings", False))
    text = bool((config.get("text_config") or {}).get("tie_word_embeddings", False))
    # LlavaConfig and LlavaOnevisionConfig take the flag of the text model for their own.
    top = top or (text and config.get("model_type") != "llava_next")
    flags = f"tie_word_embeddings is {top} and text_config.tie_word_embeddings is {text}"
    if LM_HEAD not in reader:
        if not top:
            raise ValueError(f"config.json: {flags}, but tensor {LM_HEAD} is missing")
        return {"untie_embeddings_and_output_weights": False, "hf_stores_tied_output_weight": False}
    if not top and not text:
        return {"untie_embeddings_and_output_weights": True, "hf_stores_tied_output_weight": False}
    if not torch.equal(reader.tensor(LM_HEAD), reader.tensor(EMBEDDING)):
        raise ValueError(f"config.json: {flags}, but {LM_HEAD} differs from {EMBEDDING}")
    # Equal bytes under two names: an untied model at this moment unless the model's own flag ties.
    return {"untie_embeddings_and_output_weights": not top, "hf_stores_tied_output_weight": top}


def _contradiction(
    field: str, expected: Any, reader: HFSource, name: str, found: Any
) -> ValueError:
    return ValueError(f"config.json: {field} is {expected}, but {reader.source(name)} has {found}")


def check_tensors(mapping: dict[str, Any], reader: HFSource, prefix: str = "text_config.") -> None:
    """Compare the sizes that config.json states with the tensors, in the words of config.json.

    prefix: of the keys about the language model.
    """
    rows = reader.shape(EMBEDDING)[0]
    if rows != mapping["vocab_size"]:
        raise _contradiction(
            prefix + "vocab_size", mapping["vocab_size"], reader, EMBEDDING, f"{rows} rows"
        )
    channels = mapping["kv_channels"]
    for field, key, projection in (
        ("num_attention_heads", "num_attention_heads", "q_proj"),
        ("num_key_value_heads", "num_query_groups", "k_proj"),
    ):
        name = f"language_model.model.layers.0.self_attn.{projection}.weight"
        if name in reader and reader.shape(name)[0] != mapping[key] * channels:
            stated = f"{mapping[key]} of {channels} channels each"
            found = f"{reader.shape(name)[0]} rows"
            raise _contradiction(prefix + field, stated, reader, name, found)
    _check_layers(reader, "language_model.model.layers.", prefix, mapping["num_layers"])
    _check_tower(mapping, reader)


def _check_tower(mapping: dict[str, Any], reader: HFSource) -> None:
    kind = TOWERS[mapping["vision_model_type"]]
    side = mapping["vision_image_size"] // mapping["vision_patch_size"]
    expected = side * side + kind.front_rows
    for positions in (VISION + name for name in _POSITIONS):
        if positions in reader and (rows := reader.shape(positions)[-2]) != expected:
            stated = f"{mapping['vision_image_size']} ({expected} positions)"
            raise _contradiction(
                "vision_config.image_size", stated, reader, positions, f"{rows} rows"
            )
    layers = "encoder.layers" if kind.hf is None else kind.hf.layers
    stored = mapping["vision_num_layers"]
    _check_layers(reader, f"{VISION}{layers}.", "vision_config.", stored)


def _check_layers(reader: HFSource, prefix: str, section: str, expected: int) -> None:
    found = {
        name.removeprefix(prefix).split(".")[0]
        for name in reader.names()
        if name.startswith(prefix)
    }
    if len(found) != expected:
        raise ValueError(
            f"config.json: {section}num_hidden_layers is {expected}, but the checkpoint has "
            f"tensors of {len(found)} layers ({prefix}*)"
        )


def write_config(folder: Path, config: dict[str, Any], dtype: torch.dtype) -> None:
    """Write config.json with the dtype of the exported tensors in the key that the file used."""
    config = dict(config)
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    config[key] = DTYPE_NAMES[dtype]
    for section in ("text_config", "vision_config"):
        inner = dict(config.get(section) or {})
        for name in ("dtype", "torch_dtype"):
            if name in inner:
                inner[name] = DTYPE_NAMES[dtype]
        config[section] = inner
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
